// SPDX-License-Identifier: GPL-2.0

//! A device during a test: what is done to it, step by step, and what has been seen.

use kernel::{
    fmt,
    prelude::*,
    time::{
        Delta,
        Instant,
        Monotonic, //
    },
};

use virtio::{
    bench::Session,
    blk,
    Feature,
    LendBox,
    Status, //
};

use crate::{
    parameters,
    report::{
        End,
        Test,
        Text,
        Trace, //
    },
    setup::Setup,
    status::{
        is_broken,
        is_running,
        Revision,
        RUNNING,
        SET_UP, //
    },
    traffic::{
        Kind,
        Request, //
    },
    Heard,
    Queue, //
};

/// How often the status is read while an answer is waited for.
const STEP: Delta = Delta::from_micros(50);

/// How often it is looked for what takes longer.
const SLOW_STEP: Delta = Delta::from_millis(2);

/// How long a notification can be under way that was sent before the device answered.
const GRACE: Delta = Delta::from_millis(10);

/// The most buffers that the device has at a time.
pub(crate) const MAX_BUFFERS: usize = 32;

/// How many buffers are there when there are to be some.
pub(crate) const SOME: usize = 4;

/// A device during a test.
pub(crate) struct Rig<'a> {
    pub(crate) session: Session<'a>,
    pub(crate) kind: Kind,
    pub(crate) revision: Option<Revision>,
    queues: &'a [Queue],
    heard: &'a Heard,
    /// What was seen, and what was expected instead, if that was something else.
    pub(crate) seen: Text,
    pub(crate) expected: Text,
    pub(crate) trace: Trace,
    /// The identities of the requests that the device has.
    given: KVec<u32>,
    next_id: u32,
    /// Whether the device resumes when SUSPEND is kept in the status that is written.
    pub(crate) resumes_kept: bool,
}

impl<'a> Rig<'a> {
    pub(crate) fn new(
        session: Session<'a>,
        kind: Kind,
        queues: &'a [Queue],
        heard: &'a Heard,
    ) -> Result<Self> {
        let revision = if session.offers(Feature::SUSPEND)? {
            Some(Revision::V1_4)
        } else if session.offers(Feature::SUSPEND_DRAFT)? && kind != Kind::Network {
            // For a network device bit 42 is something else.
            Some(Revision::Draft)
        } else {
            None
        };
        Ok(Self {
            session,
            kind,
            revision,
            queues,
            heard,
            seen: Text::new(),
            expected: Text::new(),
            trace: Trace::new(),
            given: KVec::new(),
            next_id: 0,
            resumes_kept: revision == Some(Revision::V1_4),
        })
    }

    /// Forgets what has been seen.
    pub(crate) fn begin(&mut self) {
        self.seen.clear();
        self.expected.clear();
        self.trace.clear();
    }

    /// What was seen is not what was expected.
    pub(crate) fn fail(&mut self, expected: fmt::Arguments<'_>, seen: fmt::Arguments<'_>) -> End {
        self.expected.put(expected);
        self.seen.clear();
        self.seen.put(seen);
        End::Fail
    }

    /// It can't be judged.
    pub(crate) fn skip(&mut self, why: fmt::Arguments<'_>) -> End {
        self.seen.clear();
        self.seen.put(why);
        End::Skip
    }

    /// Says how long something took that went well.
    pub(crate) fn took(&mut self, time: Delta) {
        self.seen.put(fmt!("after {} us", time.as_nanos() / 1000));
    }

    /// The revision of SUSPEND, of a device that offers it.
    pub(crate) fn revision(&mut self) -> Test<Revision> {
        match self.revision {
            Some(revision) => Ok(revision),
            None => Err(self.skip(fmt!("the device does not offer SUSPEND"))),
        }
    }

    // Time.

    /// How long the device may take to answer.
    fn deadline() -> Delta {
        Delta::from_millis(parameters::deadline_ms.value().into())
    }

    /// Waits for as long as a device that is suspended is watched.
    pub(crate) fn stay(&mut self) -> Test {
        Ok(self
            .session
            .pause(Delta::from_millis(parameters::still_ms.value().into()))?)
    }

    /// Waits until a notification must have come that was sent before.
    pub(crate) fn settle(&mut self) -> Test {
        self.session.synchronize_callbacks()?;
        Ok(self.session.pause(GRACE)?)
    }

    // The status.

    pub(crate) fn read(&mut self) -> Test<Status> {
        let status = self.session.device()?.status();
        self.trace.add(false, status);
        Ok(status)
    }

    pub(crate) fn write(&mut self, status: Status) -> Test {
        self.trace.add(true, status);
        Ok(self.session.write_status(status)?)
    }

    /// Reads the status until `done`, or only a reset helps. Returns it, and how long it took.
    fn answer(&mut self, done: impl Fn(Status) -> bool) -> Test<(Status, Delta)> {
        let began = Instant::<Monotonic>::now();
        loop {
            let status = self.read()?;
            let took = began.elapsed();
            if done(status) || is_broken(status) || took > Self::deadline() {
                return Ok((status, took));
            }
            self.session.pause(STEP)?;
        }
    }

    /// Waits until the device presents `done`, and returns how long that took.
    fn expect(&mut self, what: &str, done: impl Fn(Status) -> bool) -> Test<Delta> {
        let (status, took) = self.answer(&done)?;
        if done(status) {
            return Ok(took);
        }
        let (bits, ms) = (status.bits(), took.as_millis());
        if status == Status::ALL_ONES || !status.contains(Status::DEVICE_NEEDS_RESET) {
            return Err(self.fail(
                fmt!(
                    "status {what} within {} ms, or DEVICE_NEEDS_RESET",
                    Self::deadline().as_millis()
                ),
                fmt!("status 0x{bits:02x} after {ms} ms"),
            ));
        }
        Err(self.skip(fmt!(
            "the device has answered with DEVICE_NEEDS_RESET, as it may (V5)"
        )))
    }

    /// Writes SUSPEND, and waits until the device presents that it is suspended.
    pub(crate) fn suspend(&mut self) -> Test<Delta> {
        let revision = self.revision()?;
        self.write(RUNNING.with(Status::SUSPEND))?;
        let what = match revision {
            Revision::V1_4 => "0x1b, with SUSPEND and without DRIVER_OK,",
            Revision::Draft => "0x1f, with SUSPEND,",
        };
        self.expect(what, |status| revision.is_suspended(status))
    }

    /// Writes SUSPEND, and returns the status that the device answers with, whatever that is.
    pub(crate) fn try_suspend(&mut self) -> Test<Status> {
        let revision = self.revision()?;
        self.write(RUNNING.with(Status::SUSPEND))?;
        Ok(self.answer(|status| revision.is_suspended(status))?.0)
    }

    /// Resumes in the way that the device knows.
    pub(crate) fn resume(&mut self) -> Test<Delta> {
        self.resume_by(self.resumes_kept)
    }

    /// Writes DRIVER_OK, with SUSPEND `kept` or cleared, and waits until the device runs.
    pub(crate) fn resume_by(&mut self, kept: bool) -> Test<Delta> {
        let status = if kept {
            RUNNING.with(Status::SUSPEND)
        } else {
            RUNNING
        };
        self.write(status)?;
        self.expect("0x0f", is_running)
    }

    /// Waits until the device is either suspended or running for good. Returns whether it runs.
    pub(crate) fn settled(&mut self) -> Test<bool> {
        let revision = self.revision()?;
        let done = |status| is_running(status) || revision.is_suspended(status);
        self.expect("0x0f, or that of a suspended device,", done)?;
        self.stay()?;
        let status = self.read()?;
        Ok(is_running(status))
    }

    /// Fails unless the device is still suspended.
    pub(crate) fn is_still_suspended(&mut self) -> Test {
        let revision = self.revision()?;
        let status = self.read()?;
        if revision.is_suspended(status) {
            return Ok(());
        }
        Err(self.fail(
            fmt!("the suspended condition until the resume"),
            fmt!("status 0x{:02x}", status.bits()),
        ))
    }

    /// Returns whether SUSPEND is ignored: watches the status for a while.
    pub(crate) fn ignores(&mut self, status: Status) -> Test {
        self.write(status.with(Status::SUSPEND))?;
        let began = Instant::<Monotonic>::now();
        let still = Delta::from_millis(parameters::still_ms.value().into());
        while began.elapsed() < still {
            let seen = self.read()?;
            if seen != status {
                return Err(self.fail(
                    fmt!("status 0x{:02x}: SUSPEND is ignored", status.bits()),
                    fmt!("status 0x{:02x}", seen.bits()),
                ));
            }
            self.session.pause(SLOW_STEP)?;
        }
        Ok(())
    }

    // Setting up.

    /// Resets the device, and goes as far as to ACKNOWLEDGE and DRIVER.
    pub(crate) fn acknowledge(&mut self, setup: Setup<'_>) -> Test {
        self.trace.add(true, Status::RESET);
        self.session.reset()?;
        self.given.clear();
        let status = self.read()?;
        if status != Status::RESET {
            return Err(self.fail(
                fmt!("status 0x00 after a reset"),
                fmt!("status 0x{:02x}", status.bits()),
            ));
        }
        let mut accepted = KVec::with_capacity(setup.accepted.len() + 1, GFP_KERNEL)?;
        accepted.extend_from_slice(setup.accepted, GFP_KERNEL)?;
        if let Some(revision) = self.revision.filter(|_| setup.suspend) {
            accepted.push(revision.feature(), GFP_KERNEL)?;
        }
        self.trace
            .add(true, Status::ACKNOWLEDGE.with(Status::DRIVER));
        Ok(self.session.negotiate(&accepted, setup.refused)?)
    }

    /// Goes on to FEATURES_OK.
    pub(crate) fn features_ok(&mut self) -> Test {
        self.write(SET_UP)?;
        let status = self.read()?;
        if status == SET_UP {
            return Ok(());
        }
        Err(self.fail(
            fmt!("status 0x0b: FEATURES_OK is accepted"),
            fmt!("status 0x{:02x}", status.bits()),
        ))
    }

    /// Goes on to DRIVER_OK.
    pub(crate) fn driver_ok(&mut self, setup: Setup<'_>) -> Test {
        self.session.find(setup.enabled)?;
        self.session.open_queues()?;
        self.write(RUNNING)?;
        let status = self.read()?;
        if status == RUNNING {
            return Ok(());
        }
        Err(self.fail(
            fmt!("status 0x0f after DRIVER_OK"),
            fmt!("status 0x{:02x}", status.bits()),
        ))
    }

    /// Resets the device, and puts it into operation.
    pub(crate) fn set_up_with(&mut self, setup: Setup<'_>) -> Test {
        self.acknowledge(setup)?;
        self.features_ok()?;
        self.driver_ok(setup)
    }

    /// As above, with SUSPEND and all virtqueues.
    pub(crate) fn set_up(&mut self) -> Test {
        self.revision()?;
        self.set_up_with(Setup::default())
    }

    // Buffers.

    /// The virtqueue of requests.
    pub(crate) fn busy(&mut self) -> Test<Queue> {
        self.queue(self.kind.busy_queue())
    }

    /// The virtqueue of buffers that the device keeps, or would if it were not notified of them.
    pub(crate) fn quiet(&mut self) -> Test<Queue> {
        self.queue(self.kind.quiet_queue())
    }

    fn queue(&mut self, index: Option<usize>) -> Test<Queue> {
        match index.and_then(|index| self.queues.get(index)) {
            Some(queue) => Ok(queue.clone()),
            None => Err(self.skip(fmt!("no traffic is known for this device type"))),
        }
    }

    /// Fails if the device, which is suspended, uses a buffer of so many in a while.
    pub(crate) fn uses_none(&mut self, count: usize, expected: fmt::Arguments<'_>) -> Test {
        self.stay()?;
        match self.collect()? {
            0 => Ok(()),
            late => Err(self.fail(expected, fmt!("{late} of {count} were"))),
        }
    }

    /// Makes `count` requests available, or as many as there is room for, and returns how many.
    pub(crate) fn request(&mut self, count: usize) -> Test<usize> {
        let kind = self.kind;
        self.request_as(count, |id, _| kind.request(id))
    }

    /// As above, with requests that `make` makes of their identity and their number.
    pub(crate) fn request_as(
        &mut self,
        count: usize,
        make: impl Fn(u32, usize) -> Result<LendBox<Request>>,
    ) -> Test<usize> {
        let queue = self.busy()?;
        self.add(&queue, count, make)
    }

    /// As above, with buffers that the device keeps.
    pub(crate) fn supply(&mut self, count: usize) -> Test<usize> {
        let queue = self.quiet()?;
        let kind = self.kind;
        self.add(&queue, count, |id, _| kind.quiet(id))
    }

    fn add(
        &mut self,
        queue: &Queue,
        count: usize,
        make: impl Fn(u32, usize) -> Result<LendBox<Request>>,
    ) -> Test<usize> {
        for done in 0..count {
            let request = make(self.next_id, done)?;
            self.given.reserve(1, GFP_KERNEL)?;
            match queue.lock().add(request) {
                Ok(()) => {}
                Err(refused) if refused.error == ENOSPC => return Ok(done),
                Err(refused) => return Err(refused.error.into()),
            }
            // There is room.
            let _ = self.given.push_within_capacity(self.next_id);
            self.next_id = self.next_id.wrapping_add(1);
        }
        Ok(count)
    }

    /// Takes back what the device has used, in all virtqueues, and returns how much that was.
    pub(crate) fn collect(&mut self) -> Test<usize> {
        let mut count = 0;
        for queue in self.queues {
            loop {
                let used = queue.lock().get_buf();
                let Some(used) = used else { break };
                count += 1;
                let id = used.token.id;
                let Some(at) = self.given.iter().position(|given| *given == id) else {
                    return Err(self.fail(
                        fmt!("each buffer once"),
                        fmt!("buffer {id} was used, which the device does not have"),
                    ));
                };
                let _ = self.given.remove(at);
                if self.kind.busy_queue() != Some(queue.index()) {
                    continue;
                }
                if let Some(what) = self.kind.objection(&used.token, used.len) {
                    return Err(self.fail(
                        fmt!("buffers that are used as the device type has it"),
                        fmt!("{what}, with buffer {id}"),
                    ));
                }
            }
        }
        Ok(count)
    }

    /// Returns how many buffers the device has.
    pub(crate) fn outstanding(&self) -> usize {
        self.given.len()
    }

    /// Waits until the device has no more than `rest` buffers.
    pub(crate) fn until_left(&mut self, rest: usize) -> Test {
        let began = Instant::<Monotonic>::now();
        loop {
            self.collect()?;
            let left = self.outstanding();
            if left <= rest {
                return Ok(());
            }
            if began.elapsed() > Self::deadline() {
                return Err(self.fail(
                    fmt!(
                        "all buffers but {rest} are used within {} ms",
                        Self::deadline().as_millis()
                    ),
                    fmt!("{left} are left"),
                ));
            }
            self.session.pause(SLOW_STEP)?;
        }
    }

    /// Fails unless the device does what it is for.
    pub(crate) fn works(&mut self) -> Test {
        let Some(queue) = self
            .kind
            .busy_queue()
            .and_then(|index| self.queues.get(index))
        else {
            return Ok(());
        };
        let others = self.outstanding();
        self.request(2)?;
        queue.lock().notify();
        self.until_left(others)
    }

    /// Takes back the buffers that the device had when it was reset, and returns how many of them
    /// it has written to.
    pub(crate) fn take_back(&mut self) -> Test<(usize, usize)> {
        let (mut count, mut touched) = (0, 0);
        for queue in self.queues {
            while let Some(request) = self.session.take_back(queue)? {
                count += 1;
                touched += usize::from(!request.is_untouched());
            }
        }
        self.given.clear();
        Ok((count, touched))
    }

    /// The buffers that the device had are no more.
    pub(crate) fn forget_given(&mut self) {
        self.given.clear();
    }

    // Notifications, and the configuration.

    /// Returns how many used buffer notifications there were, and how many of a change of the
    /// configuration.
    pub(crate) fn notifications(&self) -> (u32, u32) {
        (self.heard.used(), self.heard.changes())
    }

    /// Waits until there are others than the `before` used buffer notifications there were, or the
    /// device has had the time that it may take. Returns how long that took.
    ///
    /// The virtio core tells of one only while there is a used buffer to be taken back.
    pub(crate) fn until_notified(&mut self, before: u32) -> Test<Delta> {
        self.until(|rig| rig.notifications().0 != before)
    }

    /// As above, of configuration change notifications.
    pub(crate) fn until_changed(&mut self, before: u32) -> Test<Delta> {
        self.until(|rig| rig.notifications().1 != before)
    }

    /// Waits for something that the device may take its time for, and returns how long that took.
    fn until(&mut self, done: impl Fn(&Self) -> bool) -> Test<Delta> {
        let began = Instant::<Monotonic>::now();
        while !done(self) && began.elapsed() < Self::deadline() {
            self.session.pause(SLOW_STEP)?;
        }
        Ok(began.elapsed())
    }

    /// Returns what is known of the configuration.
    pub(crate) fn configuration(&mut self) -> Test<Configuration> {
        let dev = self.session.device()?;
        let config = dev.config();
        let generation = config.generation();
        let capacity = match self.kind {
            Kind::Block => config.read(&blk::CAPACITY)?,
            _ => 0,
        };
        Ok(Configuration {
            generation,
            capacity,
        })
    }

    /// Leaves the device in operation, without SUSPEND.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if it can't be.
    pub(crate) fn leave(&mut self) -> Result {
        self.begin();
        let setup = Setup {
            suspend: false,
            ..Setup::default()
        };
        match self.set_up_with(setup) {
            Ok(()) => Ok(()),
            Err(End::Error(error)) => Err(error),
            Err(_) => Err(ENODEV),
        }
    }
}

/// What is known of the configuration of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Configuration {
    generation: u32,
    /// Of a disk, in sectors.
    capacity: u64,
}
