// SPDX-License-Identifier: GPL-2.0

//! What can be said of a block device on the command line.

use std::path::PathBuf;
use std::thread;

use clap::ValueEnum;
use serde_json::{Map, Value};
use thiserror::Error;

use super::backing::{Backing, BackingError};
use super::config::{Config, ConfigError, Feature, MAX_QUEUES, SECTOR};
use super::execute::Disk;

/// The size unless given.
const SIZE: u64 = 64 << 20;
/// Threads unless given: more than the host has processors help nobody.
const THREADS: usize = 4;

/// Options of a block device.
#[derive(Clone, Debug, Default, clap::Args)]
#[group(skip)]
#[command(next_help_heading = "Block device (--type blk)")]
pub struct Options {
    /// File with the data; it keeps them. Without it they are in memory, for as long as the process
    /// lives
    #[arg(long, value_name = "PATH")]
    pub backing: Option<PathBuf>,

    /// Size in bytes, or with K, M or G. Without it: that of the file, or 64M. A file that is smaller
    /// grows
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub size: Option<u64>,

    /// Request queues
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_QUEUES)))]
    pub queues: u16,

    /// Threads that carry requests out, for all queues together; with 0 a request is carried out
    /// before the notification of it is over, which is quickest for one at a time [default: as many
    /// as queues, at most 4 or the host's processors]
    #[arg(long, value_name = "N",
          value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(0..=64))]
    pub threads: Option<usize>,

    /// Refuse writes: offer RO
    #[arg(long)]
    pub read_only: bool,

    /// Don't offer these features
    #[arg(long, value_name = "FEATURE,...", value_delimiter = ',', value_enum)]
    pub without: Vec<Feature>,

    /// Set a limit or the like: seg_max=4, blk_size=4096, serial=disk7, writeback=false, ...; the
    /// keys are those of `config` in the reply to {"cmd":"device"}, and the guest can set them, too
    #[arg(long = "blk", value_name = "KEY=VALUE", value_parser = key_value)]
    pub set: Vec<(String, Value)>,
}

/// A block device that can't be.
#[derive(Debug, Error)]
pub enum OptionsError {
    /// Its data have no place.
    #[error(transparent)]
    Backing(#[from] BackingError),
    /// Its values don't fit.
    #[error("--blk: {0}")]
    Config(#[from] ConfigError),
}

/// Reads a size.
fn size(text: &str) -> Result<u64, String> {
    let wanted = || format!("use a number of bytes, or one with K, M or G, in sectors of {SECTOR}");
    let (number, shift) = match text.strip_suffix(['K', 'M', 'G']) {
        Some(number) if text.ends_with('K') => (number, 10),
        Some(number) if text.ends_with('M') => (number, 20),
        Some(number) => (number, 30),
        None => (text, 0),
    };
    let number: u64 = number.parse().map_err(|_| wanted())?;
    number
        .checked_mul(1 << shift)
        .filter(|size| *size != 0 && size.is_multiple_of(SECTOR) && i64::try_from(*size).is_ok())
        .ok_or_else(wanted)
}

/// Reads a key and a value, which is JSON or else a text.
fn key_value(text: &str) -> Result<(String, Value), String> {
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| "use KEY=VALUE".to_string())?;
    // A serial may look like a number.
    let value = match serde_json::from_str(value) {
        Ok(json) if key != "serial" => json,
        _ => Value::String(value.into()),
    };
    Ok((key.into(), value))
}

impl Options {
    /// The disk they ask for, and the number of threads, for queues of at most `queue_size`
    /// descriptors.
    pub fn parts(&self, queue_size: u16) -> Result<(Disk, Config, usize), OptionsError> {
        let default = self.backing.is_none().then_some(SIZE);
        let size = self.size.or(default);
        // What is wrong with the values is said before a file is made.
        self.config(size.unwrap_or(SIZE), queue_size)?;
        let (backing, size) = Backing::open(self.backing.as_deref(), size)?;
        let config = self.config(size, queue_size)?;
        backing.reserve(config.capacity.saturating_mul(SECTOR))?;
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let threads = self
            .threads
            .unwrap_or_else(|| usize::from(self.queues).min(THREADS).min(processors));
        let disk = Disk::new(backing, config.capacity);
        Ok((disk, config, threads))
    }

    fn config(&self, size: u64, queue_size: u16) -> Result<Config, ConfigError> {
        let mut config = Config::new(size / SECTOR, self.queues.max(1), queue_size);
        for feature in &self.without {
            config.features.remove(feature);
        }
        if self.read_only {
            config.features.insert(Feature::Ro);
        }
        let set: Map<String, Value> = self.set.iter().cloned().collect();
        let config = config.changed(&Value::Object(set))?;
        config.check(queue_size, self.queues.max(1))?;
        Ok(config)
    }
}

/// The names of the features, for `--help`.
pub fn help() -> String {
    let names: Vec<String> = Feature::value_variants()
        .iter()
        .filter_map(|feature| Some(feature.to_possible_value()?.get_name().to_string()))
        .collect();
    format!("Features of a block device: {}.", names.join(", "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(size("512"), Ok(512));
        assert_eq!(size("4K"), Ok(4096));
        assert_eq!(size("3M"), Ok(3 << 20));
        assert_eq!(size("2G"), Ok(2 << 30));
        for bad in ["", "K", "1", "513", "0", "-1", "1T", "99999999999G", "4k"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_and_values() {
        assert_eq!(key_value("a=1"), Ok(("a".into(), json!(1))));
        assert_eq!(key_value("a=true"), Ok(("a".into(), json!(true))));
        assert_eq!(key_value("serial=1"), Ok(("serial".into(), json!("1"))));
        assert_eq!(key_value("a=b=c"), Ok(("a".into(), json!("b=c"))));
        assert!(key_value("a").is_err());
    }

    #[test]
    fn what_is_asked_for() {
        let options = Options {
            size: Some(1 << 20),
            queues: 4,
            read_only: true,
            without: vec![Feature::Discard],
            set: vec![("seg_max".into(), json!(3))],
            ..Options::default()
        };
        let config = options.config(1 << 20, 64).unwrap();
        assert!(config.has(Feature::Ro) && !config.has(Feature::Discard));
        assert_eq!(
            (config.capacity, config.seg_max, config.queues),
            (2048, 3, 4)
        );
        assert!(options.parts(64).is_ok());
        let wrong = Options {
            set: vec![("seg_max".into(), json!(64))],
            ..options
        };
        let message = wrong.parts(64).err().unwrap().to_string();
        assert!(message.contains("seg_max is 64; use 1 to 62"), "{message}");
    }
}
