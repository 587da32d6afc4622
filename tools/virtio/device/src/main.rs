// SPDX-License-Identifier: GPL-2.0

//! `virtio-test-device`: see `--help` and the crate's documentation.

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;
use env_logger::Env;

use virtio_test_device::cli::Args;
use virtio_test_device::device::Device;
use virtio_test_device::events::Events;
use virtio_test_device::server;

fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let events = match &args.events {
        Some(path) => Events::open(path)?,
        None => Events::none(),
    };
    let kind = args.kind.build(&args.options, args.queue_size)?;
    let mut device = Device::new(args.kind, kind, args.settings(), args.queue_size, events)?;
    if args.no_soft_reset {
        device.add_no_soft_reset();
    }
    server::serve(device, &args.socket, args.once)?;
    Ok(())
}

fn main() -> ExitCode {
    env_logger::Builder::from_env(Env::default().default_filter_or("warn,virtio_test_device=info"))
        .init();
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("virtio-test-device: {error}");
            ExitCode::FAILURE
        }
    }
}
