// SPDX-License-Identifier: GPL-2.0

//! The command line.

use std::path::PathBuf;

use clap::Parser;

use crate::fault::{self, Fault, Faults, MAX_DELAY_MS};
use crate::features::Offer;
use crate::like::Like;
use crate::registry::{self, Kind, Options};
use crate::ring::MAX_QUEUE_SIZE;
use crate::settings::{DataKind, Judging, RingKind, Settings};

const EXAMPLES: &str = r#"Examples:
  An entropy device that offers SUSPEND as VIRTIO 1.4 has it, for one guest:

    virtio-test-device --socket /tmp/rng.sock --once --events rng.jsonl

  The guest, on stock QEMU 10.1 or later (its memory has to be shared):

    qemu-system-x86_64 -m 512M \
      -object memory-backend-memfd,id=mem,share=on,size=512M \
      -machine q35,memory-backend=mem \
      -device '{"driver":"vfio-user-pci","socket":{"path":"/tmp/rng.sock","type":"unix"}}' ...

  What the driver did wrong, and how often:

    grep '"event":"violation"' rng.jsonl; tail -n 1 rng.jsonl

  A disk of 1 GiB with 4 queues that keeps its data in a file, without DISCARD:

    virtio-test-device --socket /tmp/blk.sock --type blk --backing disk.img --size 1G \
      --queues 4 --queue-size 128 --without discard --blk serial=disk7

  A device as of the 2023 draft, with packed rings, that takes 200 ms to suspend:

    virtio-test-device --socket /tmp/rng.sock --offer 42 --ring packed --delay-suspend 200

  A device that refuses to suspend, and one that breaks in other ways (the list is below):

    virtio-test-device --socket /tmp/rng.sock --refuse-suspend
    virtio-test-device --socket /tmp/rng.sock --fault suspend-late=500 --fault used-irq-lost

  A device that answers out of a random stream; the same seed gives the same answers:

    virtio-test-device --socket /tmp/rng.sock --fuzz 42

  Two network devices on a cable, with two queue pairs each (for a guest with two namespaces):

    virtio-test-device --type net --socket /tmp/a.sock --cable /tmp/cable --queue-pairs 2
    virtio-test-device --type net --socket /tmp/b.sock --cable /tmp/cable --queue-pairs 2

The guest can change all of this while it runs, and ask for counts and violations, through a
mailbox in BAR 2. RUST_LOG=debug shows every access that was not as it should be; violations of
the driver's rules are always logged as errors. SIGTERM ends the device cleanly."#;

/// A whole VIRTIO 1.4 PCI device over vfio-user that judges how its driver uses SUSPEND.
#[derive(Debug, Parser)]
#[command(name = "virtio-test-device", version, after_help = after_help())]
pub struct Args {
    /// Unix socket to listen on; a stale one is replaced
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,

    /// Device type
    #[arg(long = "type", value_enum, default_value_t)]
    pub kind: Kind,

    /// Options of the device types
    #[command(flatten)]
    pub options: Options,

    /// SUSPEND feature bits to offer
    #[arg(long, value_enum, default_value_t)]
    pub offer: Offer,

    /// Virtqueue layout to offer
    #[arg(long, value_enum, default_value_t)]
    pub ring: RingKind,

    /// Don't offer INDIRECT_DESC
    #[arg(long)]
    pub no_indirect: bool,

    /// Don't offer EVENT_IDX
    #[arg(long)]
    pub no_event_idx: bool,

    /// Offer ACCESS_PLATFORM
    #[arg(long)]
    pub access_platform: bool,

    /// Keep all state in D3hot, in which the system puts a device that sleeps: No_Soft_Reset
    #[arg(long)]
    pub no_soft_reset: bool,

    /// Largest queue size, a power of two
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = queue_size)]
    pub queue_size: u16,

    /// Time from the SUSPEND write to the suspended condition; 0: before the first re-read
    #[arg(long, value_name = "MS", default_value_t = 0, value_parser = delay())]
    pub delay_suspend: u64,

    /// Time from the resume write to the resumed condition
    #[arg(long, value_name = "MS", default_value_t = 0, value_parser = delay())]
    pub delay_resume: u64,

    /// Refuse to suspend: by DEVICE_NEEDS_RESET (1.4) or by no answer (draft)
    #[arg(long)]
    pub refuse_suspend: bool,

    /// Contents of entropy buffers
    ///
    /// `counter` is one stream of little-endian u32, 0, 1, 2, ..., across all buffers since the
    /// last device reset: a reader can prove that no byte was lost or repeated.
    #[arg(long, value_enum, default_value_t)]
    pub data: DataKind,

    /// Put at most this many bytes into a buffer
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_bytes: Option<u32>,

    /// Do something wrong; may be repeated. The list of faults is at the end
    #[arg(long = "fault", value_name = "NAME[=ARG]")]
    pub faults: Vec<Fault>,

    /// Be like a device that differs from VIRTIO 1.4: sets what is offered, and faults
    #[arg(long, value_enum, conflicts_with = "offer")]
    pub like: Option<Like>,

    /// Offer ADMIN_VQ: short for --fault admin-vq
    #[arg(long)]
    pub admin_vq: bool,

    /// From DRIVER_OK on, answer out of the random stream of this seed
    #[arg(long, value_name = "SEED")]
    pub fuzz: Option<u64>,

    /// Append events to this file as JSON lines; - for standard output
    #[arg(long, value_name = "FILE")]
    pub events: Option<PathBuf>,

    /// Exit after the first client has disconnected
    #[arg(long)]
    pub once: bool,
}

fn delay() -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(..=MAX_DELAY_MS)
}

fn queue_size(text: &str) -> Result<u16, String> {
    text.parse::<u16>()
        .ok()
        .filter(|size| size.is_power_of_two() && *size <= MAX_QUEUE_SIZE)
        .ok_or_else(|| format!("use a power of two from 1 to {MAX_QUEUE_SIZE}"))
}

/// Examples and faults.
fn after_help() -> String {
    format!("{EXAMPLES}\n\n{}\n\n{}", registry::help(), fault::help())
}

impl Args {
    /// The settings these options ask for.
    pub fn settings(&self) -> Settings {
        let mut faults = self.like.map(Like::faults).unwrap_or_default();
        faults.extend(self.faults.iter().copied());
        if self.admin_vq {
            faults.push(Fault::with(fault::Name::AdminVq, 0));
        }
        Settings {
            offer: self.like.map_or(self.offer, Like::offer),
            ring: self.ring,
            indirect: !self.no_indirect,
            event_idx: !self.no_event_idx,
            access_platform: self.access_platform,
            delay_suspend_ms: self.delay_suspend,
            delay_resume_ms: self.delay_resume,
            refuse_suspend: self.refuse_suspend,
            data: self.data,
            hold: false,
            max_bytes: self.max_bytes,
            rescan_on_resume: false,
            faults: Faults::new(faults),
            like: self.like,
            fuzz: self.fuzz,
            judge: Judging::On,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(options: &[&str]) -> Result<Args, clap::Error> {
        let command = ["virtio-test-device", "--socket", "s"];
        Args::try_parse_from(command.iter().chain(options))
    }

    #[test]
    fn options_are_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn defaults() {
        let settings = parse(&[]).unwrap().settings();
        assert_eq!(
            settings,
            Settings {
                indirect: true,
                event_idx: true,
                ..Settings::default()
            }
        );
    }

    #[test]
    fn faults_add_up() {
        let options = ["--fault", "hold-ms=3", "--admin-vq", "--fault", "gone"];
        let settings = parse(&options).unwrap().settings();
        assert_eq!(settings.faults.get(fault::Name::HoldMs), Some(3));
        assert!(settings.faults.has(fault::Name::AdminVq));
        assert!(!settings.faults.at(fault::Moment::OnSuspend).is_empty());
    }

    #[test]
    fn one_that_is_like_another() {
        let options = ["--like", "5bsd", "--fault", "hold-ms=3"];
        let settings = parse(&options).unwrap().settings();
        assert_eq!(settings.offer, Offer::Ratified);
        assert_eq!(settings.faults.get(fault::Name::DrainLimit), Some(100));
        assert_eq!(settings.faults.get(fault::Name::HoldMs), Some(3));
        let settings = parse(&["--like", "crosvm"]).unwrap().settings();
        assert_eq!(settings.offer, Offer::Draft);
        assert!(parse(&["--like", "crosvm", "--offer", "43"]).is_err());
    }

    #[test]
    fn bad_values() {
        for options in [
            ["--offer", "44"],
            ["--queue-size", "3"],
            ["--queue-size", "0"],
            ["--queue-size", "65536"],
            ["--max-bytes", "0"],
            ["--delay-suspend", "-1"],
            ["--delay-resume", "3600001"],
            ["--type", "toaster"],
            ["--like", "toaster"],
            ["--fault", "toaster"],
            ["--fault", "gone=1"],
            ["--fuzz", "x"],
        ] {
            assert!(parse(&options).is_err(), "{options:?}");
        }
    }
}
