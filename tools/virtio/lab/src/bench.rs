// SPDX-License-Identifier: GPL-2.0

//! `lab bench`: what suspending a device costs, against what one does without it.
//!
//! Without SUSPEND, the way to have a device not touch memory is to unbind its driver, which
//! resets it and frees its queues, and to bind it again.  Both are measured in turn in the same
//! guest; absolute times under emulation mean little, their ratio does.

use crate::guest::{self, Config};
use crate::init::Job;
use crate::kernel::Kernel;
use crate::tree::Tree;
use anyhow::{ensure, Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

const SCRIPT: &str = "tools/virtio/lab/guest/bench.py";
/// Begins the line in which the script hands over what it measured.
const MARK: &str = "BENCH ";
const MIN_PAIRS: usize = 21;

/// What was measured on one device.
#[derive(Debug, Deserialize)]
struct Samples {
    /// The revision of SUSPEND.
    revision: String,
    /// Pairs, in the order measured: a suspend with its resume, an unbind with its bind.
    pairs: Vec<Pair>,
    suspend_ns: Vec<f64>,
    resume_ns: Vec<f64>,
    /// Accesses to the status register in one suspend and one resume.
    status_writes: f64,
    status_reads: f64,
}

#[derive(Clone, Copy, Debug, Deserialize)]
struct Pair {
    suspend_resume_ns: f64,
    unbind_bind_ns: f64,
}

/// A figure, as out/bench.json has it.
#[derive(Debug, Serialize)]
struct Figure {
    value: f64,
    unit: &'static str,
    better: &'static str,
    command: &'static str,
    /// First and third quartile of the samples, if there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    quartiles: Option<[f64; 2]>,
}

type Figures = BTreeMap<String, Figure>;

pub fn run(tree: &Tree, kernel: &Kernel, config: &Config) -> Result<bool> {
    let config = Config {
        deadline: Duration::from_secs(300),
        ..config.clone()
    };
    let job = Job::Command(vec![tree.join(SCRIPT).display().to_string()]);
    let mut figures = Figures::new();
    let outcome = guest::run(tree, kernel, "bench", &config, &job, |line, _| {
        match line.strip_prefix(MARK) {
            Some(text) => evaluate(
                &serde_json::from_str(text).context("the script's samples make no sense")?,
                &mut figures,
            )?,
            None => println!("{line}"),
        }
        Ok(())
    })?;
    outcome.report();
    if outcome.status() != 0 {
        return Ok(false);
    }
    ensure!(!figures.is_empty(), "nothing was measured");
    print_table(&figures);
    let path = tree.out("")?.join("bench.json");
    let text = serde_json::to_string_pretty(&figures).context("can't encode the figures")?;
    fs::write(&path, text + "\n").with_context(|| format!("can't write {}", path.display()))?;
    println!("written to {}", path.display());
    Ok(true)
}

fn evaluate(samples: &Samples, figures: &mut Figures) -> Result<()> {
    ensure!(
        samples.pairs.len() >= MIN_PAIRS,
        "{} pairs measured, {MIN_PAIRS} wanted",
        samples.pairs.len()
    );
    let of = |value: fn(&Pair) -> f64| samples.pairs.iter().map(value).collect::<Vec<_>>();
    let mut figure = |name: &str, unit, values: &[f64]| {
        let [first, median, third] = quartiles(values);
        figures.insert(
            format!("{name}_{}", samples.revision),
            Figure {
                value: median,
                unit,
                better: "lower",
                command: "make bench",
                quartiles: (values.len() > 1).then_some([first, third]),
            },
        );
    };
    figure("suspend", "ns", &samples.suspend_ns);
    figure("resume", "ns", &samples.resume_ns);
    figure("suspend_resume", "ns", &of(|p| p.suspend_resume_ns));
    figure("unbind_bind", "ns", &of(|p| p.unbind_bind_ns));
    figure(
        "suspend_resume_per_unbind_bind",
        "ratio",
        &of(|p| p.suspend_resume_ns / p.unbind_bind_ns),
    );
    figure("status_writes", "accesses", &[samples.status_writes]);
    figure("status_reads", "accesses", &[samples.status_reads]);
    Ok(())
}

/// The quartiles of some samples; the second is the median.
fn quartiles(values: &[f64]) -> [f64; 3] {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    [0.25, 0.5, 0.75].map(|q| {
        let at = q * (sorted.len().saturating_sub(1)) as f64;
        let (low, high) = (at.floor() as usize, at.ceil() as usize);
        match (sorted.get(low), sorted.get(high)) {
            (Some(low), Some(high)) => low + (high - low) * at.fract(),
            _ => f64::NAN,
        }
    })
}

fn print_table(figures: &Figures) {
    println!("{:40} {:>14} {:>30}  unit", "figure", "median", "quartiles");
    for (name, figure) in figures {
        let precision = if figure.unit == "ratio" { 4 } else { 0 };
        let number = |value: f64| format!("{value:.precision$}");
        let spread = figure.quartiles.map_or(String::new(), |[first, third]| {
            format!("{} … {}", number(first), number(third))
        });
        let value = number(figure.value);
        println!("{name:40} {value:>14} {spread:>30}  {}", figure.unit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_of_few_and_many() {
        assert_eq!(quartiles(&[7.0]), [7.0; 3]);
        assert_eq!(quartiles(&[4.0, 1.0, 3.0, 2.0, 5.0]), [2.0, 3.0, 4.0]);
        assert_eq!(quartiles(&[1.0, 2.0]), [1.25, 1.5, 1.75]);
        assert!(quartiles(&[])[1].is_nan());
    }

    #[test]
    fn the_ratio_is_of_pairs() {
        let samples = Samples {
            revision: "1.4".into(),
            pairs: vec![
                Pair {
                    suspend_resume_ns: 1.0,
                    unbind_bind_ns: 10.0
                };
                MIN_PAIRS
            ],
            suspend_ns: vec![0.5],
            resume_ns: vec![0.5],
            status_writes: 2.0,
            status_reads: 4.0,
        };
        let mut figures = Figures::new();
        evaluate(&samples, &mut figures).unwrap();
        assert_eq!(figures["suspend_resume_per_unbind_bind_1.4"].value, 0.1);
        assert!(evaluate(
            &Samples {
                pairs: Vec::new(),
                ..samples
            },
            &mut figures
        )
        .is_err());
    }
}
