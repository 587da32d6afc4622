// SPDX-License-Identifier: GPL-2.0

//! Where the lab prints: on the terminal, or in blocks that are printed whole although what they
//! tell of happens at the same time.
//!
//! One block at a time has the floor, and is printed as it grows. Others are kept until it ends.
//! Those that have ended by then are printed, and the oldest of the rest takes the floor.

use anyhow::Result;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Shows a line that a guest printed.
pub fn print<T>(line: &str, _: &mut T) -> Result<()> {
    println!("{line}");
    Ok(())
}

/// Where one piece of work prints.
#[derive(Clone)]
pub enum Output {
    /// At once.
    Terminal,
    /// Into a block.
    Block(Arc<Block>),
    /// Line by line between blocks.
    Between(Screen),
}

impl Output {
    pub fn line(&self, text: impl Display) {
        match self {
            Self::Terminal => println!("{text}"),
            Self::Block(block) => block.screen.line(block.number, &text.to_string()),
            Self::Between(screen) => {
                let block = screen.block();
                screen.line(block.number, &text.to_string());
            }
        }
    }

    /// Does some work, and says so and how long it takes. In a block, only work that takes its time
    /// is worth a line.
    pub fn announce<T>(&self, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let ended = |result: &Result<T>| match result {
            Ok(_) => format!("{} s", start.elapsed().as_secs()),
            Err(_) => "failed".into(),
        };
        if !matches!(self, Self::Terminal) {
            let result = work();
            if result.is_err() || start.elapsed() >= Duration::from_secs(1) {
                self.line(format_args!("{what} … {}", ended(&result)));
            }
            return result;
        }
        print!("{what} …");
        let _ = io::stdout().flush();
        let result = match io::stdout().is_terminal() {
            true => while_seconds_run(start, work),
            false => work(),
        };
        println!(" {}", ended(&result));
        result
    }
}

/// Keeps the seconds running behind what was printed.
fn while_seconds_run<T>(start: Instant, work: impl FnOnce() -> T) -> T {
    let (done, is_done) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            let second = Duration::from_secs(1);
            while is_done.recv_timeout(second) == Err(RecvTimeoutError::Timeout) {
                let text = format!(" {} s", start.elapsed().as_secs());
                print!("{text}\x1b[{}D", text.len());
                let _ = io::stdout().flush();
            }
        });
        let result = work();
        drop(done);
        result
    })
}

/// What blocks are printed on.
#[derive(Clone)]
pub struct Screen(Arc<Mutex<State>>);

struct State {
    out: Box<dyn Write + Send>,
    next: usize,
    /// The block that has the floor.
    floor: Option<usize>,
    /// The others that are not printed yet, by age.
    kept: BTreeMap<usize, Kept>,
}

#[derive(Default)]
struct Kept {
    text: String,
    ended: bool,
}

/// A block, which ends when it is dropped.
pub struct Block {
    screen: Screen,
    number: usize,
}

impl Drop for Block {
    fn drop(&mut self) {
        self.screen.end(self.number);
    }
}

impl Screen {
    pub fn new(out: Box<dyn Write + Send>) -> Self {
        Self(Arc::new(Mutex::new(State {
            out,
            next: 0,
            floor: None,
            kept: BTreeMap::new(),
        })))
    }

    pub fn block(&self) -> Block {
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        Block {
            screen: self.clone(),
            number,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What is printed after a panic is as good as before.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn line(&self, number: usize, text: &str) {
        let mut state = self.state();
        // A block takes the floor with its first line: it may be long until then.
        if *state.floor.get_or_insert(number) == number {
            state.print(&format!("{text}\n"));
        } else {
            let kept = state.kept.entry(number).or_default();
            kept.text += text;
            kept.text.push('\n');
        }
    }

    fn end(&self, number: usize) {
        let mut state = self.state();
        if state.floor != Some(number) {
            if let Some(kept) = state.kept.get_mut(&number) {
                kept.ended = true;
            }
            return;
        }
        state.floor = None;
        let (ended, open): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(&mut state.kept)
            .into_iter()
            .partition(|(_, kept)| kept.ended);
        for kept in ended.values() {
            state.print(&kept.text);
        }
        state.kept = open;
        if let Some((number, kept)) = state.kept.pop_first() {
            state.floor = Some(number);
            state.print(&kept.text);
        }
    }
}

impl State {
    fn print(&mut self, text: &str) {
        // As with println!, but nobody is helped by a panic if the reader has gone.
        let _ = self.out.write_all(text.as_bytes());
        let _ = self.out.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl Write for Paper {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(text)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Paper {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    fn screen() -> (Screen, Paper) {
        let paper = Paper::default();
        (Screen::new(Box::new(paper.clone())), paper)
    }

    fn output(screen: &Screen) -> Output {
        Output::Block(Arc::new(screen.block()))
    }

    #[test]
    fn one_block_is_printed_as_it_grows() {
        let (screen, paper) = screen();
        let a = output(&screen);
        a.line("a1");
        assert_eq!(paper.text(), "a1\n");
        a.line("a2");
        assert_eq!(paper.text(), "a1\na2\n");
    }

    #[test]
    fn blocks_are_not_mixed() {
        let (screen, paper) = screen();
        let (a, b, c, d) = (
            output(&screen),
            output(&screen),
            output(&screen),
            output(&screen),
        );
        for number in 1..3 {
            for (name, block) in [("a", &a), ("b", &b), ("c", &c), ("d", &d)] {
                block.line(format_args!("{name}{number}"));
            }
        }
        drop(c);
        assert_eq!(paper.text(), "a1\na2\n");
        drop(a);
        // What has ended comes first, the oldest of what has not goes on.
        assert_eq!(paper.text(), "a1\na2\nc1\nc2\nb1\nb2\n");
        b.line("b3");
        d.line("d3");
        drop(b);
        assert_eq!(paper.text(), "a1\na2\nc1\nc2\nb1\nb2\nb3\nd1\nd2\nd3\n");
    }

    #[test]
    fn a_silent_block_keeps_nobody_from_the_floor() {
        let (screen, paper) = screen();
        let (silent, b) = (output(&screen), output(&screen));
        b.line("b1");
        drop(silent);
        b.line("b2");
        assert_eq!(paper.text(), "b1\nb2\n");
    }

    #[test]
    fn lines_between_blocks() {
        let (screen, paper) = screen();
        let between = Output::Between(screen.clone());
        between.line("first");
        let a = output(&screen);
        a.line("a1");
        between.line("second");
        let clone = a.clone();
        drop(a);
        assert_eq!(paper.text(), "first\na1\n");
        clone.line("a2");
        drop(clone);
        assert_eq!(paper.text(), "first\na1\na2\nsecond\n");
    }

    #[test]
    fn work_is_announced_in_one_line() {
        let (screen, paper) = screen();
        let a = output(&screen);
        let result = a.announce("building", || Ok(1));
        assert_eq!(result.unwrap(), 1);
        assert_eq!(paper.text(), "");
        assert!(a.announce::<()>("linking", || anyhow::bail!("no")).is_err());
        assert_eq!(paper.text(), "linking … failed\n");
    }
}
