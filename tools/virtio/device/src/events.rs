// SPDX-License-Identifier: GPL-2.0

//! The event stream: one JSON object a line, `{"t_us":…,"event":…,…}`.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;

use log::warn;
use serde_json::{Map, Value};
use thiserror::Error;

/// The stream can't be opened.
#[derive(Debug, Error)]
#[error("can't open the event file {path}: {source}; --events takes a file that can be written, or - for standard output")]
pub struct EventsError {
    path: String,
    source: io::Error,
}

/// Where events go.
#[derive(Default)]
pub struct Events {
    sink: Option<Box<dyn Write + Send>>,
}

impl Events {
    /// No event stream.
    pub fn none() -> Self {
        Self::default()
    }

    /// Events to `sink`.
    pub fn to(sink: Box<dyn Write + Send>) -> Self {
        Self { sink: Some(sink) }
    }

    /// Events appended to the file at `path`; `-` is standard output.
    pub fn open(path: &Path) -> Result<Self, EventsError> {
        if path == Path::new("-") {
            return Ok(Self::to(Box::new(io::stdout())));
        }
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map(|file| Self::to(Box::new(file)))
            .map_err(|source| EventsError {
                path: path.display().to_string(),
                source,
            })
    }

    /// Writes one event; `fields` is a JSON object. A sink that fails is dropped: a reader that
    /// went away must not take the device with it.
    pub fn emit(&mut self, t_us: u64, event: &str, fields: Value) {
        let Some(sink) = &mut self.sink else {
            return;
        };
        let mut object = Map::new();
        object.insert("t_us".into(), t_us.into());
        object.insert("event".into(), event.into());
        if let Value::Object(fields) = fields {
            object.extend(fields);
        }
        let mut line = Value::Object(object).to_string();
        line.push('\n');
        let written = sink.write_all(line.as_bytes()).and_then(|()| sink.flush());
        if let Err(error) = written {
            warn!("the event stream is closed: {error}");
            self.sink = None;
        }
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events")
            .field("open", &self.sink.is_some())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::json;

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Closed;

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn one_object_a_line() {
        let sink = Sink::default();
        let mut events = Events::to(Box::new(sink.clone()));
        events.emit(7, "notify", json!({"queue": 0}));
        events.emit(8, "reset", json!({}));
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        assert_eq!(
            text,
            "{\"t_us\":7,\"event\":\"notify\",\"queue\":0}\n{\"t_us\":8,\"event\":\"reset\"}\n"
        );
    }

    #[test]
    fn a_reader_that_left_is_survived() {
        let mut events = Events::to(Box::new(Closed));
        events.emit(0, "reset", json!({}));
        assert!(events.sink.is_none());
        events.emit(1, "reset", json!({}));
    }
}
