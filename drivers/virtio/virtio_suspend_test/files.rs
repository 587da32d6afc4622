// SPDX-License-Identifier: GPL-2.0

//! The files in debugfs.
//!
//! `/sys/kernel/debug/virtio_suspend_test/virtioN` has `cases`, `run` and `results`, which
//! Documentation/virtio/device-authors.rst describes.

use kernel::{
    debugfs::{
        Dir,
        File, //
    },
    fmt, new_mutex,
    prelude::*,
    str::CString,
    sync::{
        Arc,
        Mutex, //
    },
    uaccess::UserSliceReader,
};

use virtio::bench::Bench;

use crate::{
    cases,
    parameters,
    report::Text,
    rig::Rig,
    traffic::Kind,
    Heard,
    Queue, //
};

/// The longest name of a case.
const NAME_BYTES: usize = 64;

/// The device, for those who read and write the files.
#[pin_data]
pub(crate) struct Tester {
    index: u32,
    kind: Kind,
    bench: Arc<Bench>,
    queues: KVec<Queue>,
    heard: Arc<Heard>,
    /// Of the last run.
    #[pin]
    results: Mutex<Text>,
}

/// The directory of a device.
pub(crate) struct Files {
    _run: Pin<KBox<File<Arc<Tester>>>>,
    _results: Pin<KBox<File<Arc<Tester>>>>,
    _cases: Pin<KBox<File<()>>>,
    _dir: Dir,
    _root: Dir,
}

impl Files {
    pub(crate) fn new(
        index: u32,
        kind: Kind,
        bench: Arc<Bench>,
        queues: KVec<Queue>,
        heard: Arc<Heard>,
    ) -> Result<Self> {
        let tester = Arc::pin_init(
            try_pin_init!(Tester {
                index,
                kind,
                bench,
                queues,
                heard,
                results <- new_mutex!(Text::new()),
            }),
            GFP_KERNEL,
        )?;
        let root = Dir::new(c"virtio_suspend_test");
        let name = CString::try_from_fmt(fmt!("virtio{index}"))?;
        let dir = root.subdir(&name);
        let data = || Ok::<_, Error>(tester.clone());

        let run = dir.write_callback_file(c"run", data(), &run);
        let run = KBox::pin_init(run, GFP_KERNEL)?;
        let results = dir.read_callback_file(c"results", data(), &show_results);
        let results = KBox::pin_init(results, GFP_KERNEL)?;
        let cases = dir.read_callback_file(c"cases", Ok::<_, Error>(()), &show_cases);
        let cases = KBox::pin_init(cases, GFP_KERNEL)?;
        Ok(Self {
            _run: run,
            _results: results,
            _cases: cases,
            _dir: dir,
            _root: root,
        })
    }
}

fn show_results(tester: &Arc<Tester>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_str(tester.results.lock().as_str())
}

fn show_cases(_: &(), f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for case in cases::CASES {
        f.write_fmt(fmt!("{} {} {}\n", case.name, case.rule, case.section))?;
    }
    Ok(())
}

/// Runs what is written, and returns when that is done.
fn run(tester: &Arc<Tester>, reader: &mut UserSliceReader) -> Result {
    let mut bytes = [0; NAME_BYTES];
    let len = reader.len();
    let bytes = bytes.get_mut(..len).ok_or(EINVAL)?;
    reader.read_slice(bytes)?;
    let wanted = core::str::from_utf8(bytes).map_err(|_| EINVAL)?.trim();
    let only = match (wanted, parameters::only.value_ref().as_str()) {
        ("all", "") => None,
        ("all", only) => Some(only),
        (name, _) => Some(name),
    };
    if only.is_some_and(|only| !cases::CASES.iter().any(|case| case.name == only)) {
        return Err(ENOENT);
    }

    let session = tester.bench.enter()?;
    let mut rig = Rig::new(session, tester.kind, &tester.queues, &tester.heard)?;
    let mut text = Text::new();
    let result = cases::run(&mut rig, only, &mut text);
    for line in text.as_str().lines() {
        pr_info!("virtio{}: {line}\n", tester.index);
    }
    *tester.results.lock() = text;
    result
}
