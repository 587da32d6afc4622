// SPDX-License-Identifier: GPL-2.0

//! `lab bench`: the block driver against the kernel's own, a suspend against what a guest can do
//! without it, and the cost of the extension.
//!
//! The guest's side measures, in turn and in one boot, what is compared, and hands over ratios;
//! absolute times under emulation mean little.  Where the work of the processor is the question,
//! the guest's clock counts instructions, so that what else the machine does is not measured.

use crate::device::{self, Devices};
use crate::guest::{self, Clock, Config};
use crate::init::Job;
use crate::kernel::Kernel;
use crate::picture::{self, Timeline};
use crate::sleep;
use crate::tree::Tree;
use anyhow::{ensure, Context, Result};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

const SCRIPT: &str = "tools/virtio/lab/guest/bench.py";
/// Begins a line in which the script hands over what it measured.
const MARK: &str = "BENCH ";
const MIN_PAIRS: u32 = 7;
/// For one guest.
const DEADLINE: Duration = Duration::from_secs(60 * 60);

#[derive(clap::Args)]
pub struct Args {
    /// Only these groups of figures; may be repeated.
    #[arg(long, value_enum)]
    only: Vec<Group>,

    /// How often what is compared is measured in turn.
    #[arg(long, default_value_t = MIN_PAIRS, value_parser = clap::value_parser!(u32).range(1..))]
    pairs: u32,

    /// Compare the kernel's own driver with itself: how far from 1 chance can take a ratio.
    #[arg(long)]
    control: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Group {
    /// The block driver against the kernel's own with many requests at a time: throughput, latency,
    /// and the processor's time, in a guest with one processor whose clock counts instructions.
    DataPath,
    /// The same with one request at a time, of a disk that answers at once.
    Latency,
    /// Both by the clock, with two processors, which tells little: only if it is asked for.
    Smp,
    /// A suspend of our drivers against unbinding them.
    Suspend,
    /// The kernel's own drivers with and without the extension.
    ExtensionPath,
    /// A suspend of the kernel's own drivers against what else there is.
    Extension,
    /// What a wake-up of the system takes for devices that have kept their state, against those that
    /// are reset.
    Sleep,
    /// The picture of the throughput across a suspend.
    Timeline,
}

/// What a guest has to be like. What asks for the same shares one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Setting {
    clock: Clock,
    sleeps: bool,
}

impl Group {
    /// Whether the script can measure it on the kernel's own driver twice.
    fn has_control(self) -> bool {
        matches!(
            self,
            Self::DataPath | Self::Latency | Self::Smp | Self::ExtensionPath
        )
    }

    fn is_default(self) -> bool {
        self != Self::Smp
    }

    fn clock(self) -> Clock {
        match self {
            Self::DataPath | Self::ExtensionPath | Self::Sleep => Clock::Instructions,
            Self::Latency => Clock::SlowInstructions,
            Self::Smp | Self::Suspend | Self::Extension | Self::Timeline => Clock::Host,
        }
    }

    fn setting(self) -> Setting {
        Setting {
            clock: self.clock(),
            sleeps: self == Self::Sleep,
        }
    }

    fn name(self) -> String {
        let value = self.to_possible_value().expect("no group is hidden");
        value.get_name().to_string()
    }
}

/// What the script hands over.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Message {
    Figure(Samples),
    Timeline(Timeline),
}

#[derive(Debug, Deserialize)]
struct Samples {
    name: String,
    unit: String,
    better: Better,
    samples: Vec<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Better {
    Higher,
    Lower,
}

/// A figure, as out/bench.json has it.
#[derive(Debug, Serialize)]
struct Figure {
    /// The median of the samples.
    value: f64,
    unit: String,
    better: Better,
    command: String,
    /// First and third quartile of the samples, if there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    quartiles: Option<[f64; 2]>,
    samples: usize,
}

type Figures = BTreeMap<String, Figure>;

pub fn run(tree: &Tree, kernel: &Kernel, config: &Config, args: &Args) -> Result<bool> {
    let groups: Vec<Group> = Group::value_variants()
        .iter()
        .copied()
        .filter(|group| match args.only.is_empty() {
            true => group.is_default(),
            false => args.only.contains(group),
        })
        .filter(|group| !args.control || group.has_control())
        .collect();
    ensure!(!groups.is_empty(), "no such group has a control");
    let mut figures = Figures::new();
    let mut timeline = None;
    let mut settings: Vec<Setting> = Vec::new();
    for setting in groups.iter().map(|group| group.setting()) {
        if !settings.contains(&setting) {
            settings.push(setting);
        }
    }
    for setting in settings {
        let groups: Vec<Group> = groups
            .iter()
            .copied()
            .filter(|group| group.setting() == setting)
            .collect();
        let mut config = Config {
            deadline: DEADLINE,
            devices: match setting.clock {
                Clock::SlowInstructions => vec![device::immediate_disk()],
                _ if setting.sleeps => device::that_sleep(),
                Clock::Instructions | Clock::Host => device::of_selftests(),
            },
            clock: setting.clock,
            ..config.clone()
        };
        let job = Job::Command(command(tree, args, &groups));
        let mut group = String::new();
        let on_line = |line: &str, _: &mut Devices| {
            match line.strip_prefix(MARK) {
                Some(text) => {
                    match serde_json::from_str(text)
                        .context("the script's samples make no sense")?
                    {
                        Message::Figure(samples) => {
                            let figure = evaluate(&samples, command_of(&group, args))?;
                            figures.insert(samples.name, figure);
                        }
                        Message::Timeline(found) => timeline = Some(found),
                    }
                }
                None => {
                    if let Some(name) = line.strip_prefix("== ") {
                        group = name.to_string();
                    }
                    println!("{line}");
                }
            }
            Ok(())
        };
        let outcome = match setting.sleeps {
            true => sleep::run(tree, kernel, "bench", &mut config, &job, on_line),
            false => guest::run(tree, kernel, "bench", &config, &job, on_line),
        }?;
        outcome.report(&config.output);
        if outcome.status() != 0 {
            return Ok(false);
        }
    }
    ensure!(
        !figures.is_empty() || timeline.is_some(),
        "nothing was measured"
    );
    print_table(&figures);
    let path = tree.out("")?.join(match args.control {
        false => "bench.json",
        true => "bench-control.json",
    });
    let text = serde_json::to_string_pretty(&figures).context("can't encode the figures")?;
    fs::write(&path, text + "\n").with_context(|| format!("can't write {}", path.display()))?;
    println!("written to {}", path.display());
    if let Some(timeline) = timeline {
        let path = tree.out("")?.join("bench.svg");
        picture::draw(&timeline, &path)?;
        println!("drawn to {}", path.display());
    }
    Ok(true)
}

/// The script with its arguments.
fn command(tree: &Tree, args: &Args, groups: &[Group]) -> Vec<String> {
    let mut command = vec![
        tree.join(SCRIPT).display().to_string(),
        format!("--pairs={}", args.pairs),
    ];
    if args.control {
        command.push("--control".into());
    }
    command.extend(groups.iter().map(|group| group.name()));
    command
}

/// The command that measures a group by itself.
fn command_of(group: &str, args: &Args) -> String {
    let control = if args.control { " --control" } else { "" };
    format!(
        "scripts/lab bench --only {group} --pairs {}{control}",
        args.pairs
    )
}

fn evaluate(found: &Samples, command: String) -> Result<Figure> {
    let name = &found.name;
    ensure!(!found.samples.is_empty(), "{name}: no samples");
    ensure!(
        found.samples.iter().all(|sample| sample.is_finite()),
        "{name}: a sample is no number"
    );
    let [first, median, third] = quartiles(&found.samples);
    Ok(Figure {
        value: median,
        unit: found.unit.clone(),
        better: found.better,
        command,
        quartiles: (found.samples.len() > 1).then_some([first, third]),
        samples: found.samples.len(),
    })
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
    println!(
        "{:50} {:>8} {:>19} {:>7}  unit, better",
        "figure", "median", "quartiles", "samples"
    );
    for (name, figure) in figures {
        let precision = if figure.unit == "ratio" { 4 } else { 0 };
        let number = |value: f64| format!("{value:.precision$}");
        let spread = figure.quartiles.map_or(String::new(), |[first, third]| {
            format!("{} … {}", number(first), number(third))
        });
        let better = match figure.better {
            Better::Higher => "higher",
            Better::Lower => "lower",
        };
        let value = number(figure.value);
        let unit = &figure.unit;
        println!(
            "{name:50} {value:>8} {spread:>19} {:>7}  {unit}, {better}",
            figure.samples
        );
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
    fn a_figure_is_the_median_and_says_how_to_get_it() {
        let Message::Figure(mut samples) = serde_json::from_str(
            r#"{"figure":{"name":"a","unit":"ratio","better":"lower","samples":[3,1,2]}}"#,
        )
        .unwrap() else {
            panic!("not a figure");
        };
        let args = Args {
            only: Vec::new(),
            pairs: 3,
            control: false,
        };
        let figure = evaluate(&samples, command_of("suspend", &args)).unwrap();
        assert_eq!((figure.value, figure.samples), (2.0, 3));
        assert_eq!(figure.command, "scripts/lab bench --only suspend --pairs 3");
        samples.samples[0] = f64::NAN;
        assert!(evaluate(&samples, String::new()).is_err());
        samples.samples.clear();
        assert!(evaluate(&samples, String::new()).is_err());
    }
}
