// SPDX-License-Identifier: GPL-2.0

//! What the kernel's command line asks for.

use std::fmt::Write as _;

/// What begins a parameter of the kit.
const PREFIX: &str = "suspend.";

/// One that is the kernel's own: `module_param` in kernel/power/suspend.c.
const KERNELS: &[&str] = &["pm_test_delay"];

/// What is to be run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Selection {
    #[default]
    All,
    /// A case of the driver that tests devices, or a kselftest.
    Named(String),
}

/// What may become of what is on a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Data {
    #[default]
    Keep,
    Lost,
}

impl Data {
    /// As the module wants it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Lost => "lost",
        }
    }
}

/// How the machine ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Exit {
    #[default]
    PowerOff,
    Reboot,
    /// A shell on the console; when it ends, the machine is powered off.
    Shell,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parameters {
    pub test: Selection,
    /// All, if there are none.
    pub devices: Vec<String>,
    pub data: Data,
    pub exit: Exit,
    /// Of QEMU's isa-debug-exit.
    pub exit_port: Option<u16>,
    /// The name of a terminal, such as ttyS1.
    pub console: Option<String>,
}

/// A parameter: how it is written, and what it does.
struct Known {
    name: &'static str,
    values: &'static str,
    what: &'static str,
    /// Takes the value; false if there is no such value.
    set: fn(&mut Parameters, &str) -> bool,
}

const TABLE: &[Known] = &[
    Known {
        name: "test",
        values: "all or the name of a case or of a kselftest",
        what: "what is run [all]",
        set: |parameters, value| {
            parameters.test = match value {
                "all" => Selection::All,
                name => Selection::Named(name.into()),
            };
            !value.is_empty()
        },
    },
    Known {
        name: "device",
        values: "virtioN, or several of them with commas in between",
        what: "what is tested [all devices]",
        set: |parameters, value| {
            parameters.devices = value.split(',').map(str::to_string).collect();
            let number = |name: &String| Some(name.strip_prefix("virtio")?.parse::<u32>().is_ok());
            parameters.devices.iter().all(|d| number(d) == Some(true))
        },
    },
    Known {
        name: "data",
        values: "keep or lost",
        what: "whether what is on a disk may be lost [keep]",
        set: |parameters, value| {
            parameters.data = match value {
                "keep" => Data::Keep,
                "lost" => Data::Lost,
                _ => return false,
            };
            true
        },
    },
    Known {
        name: "exit",
        values: "poweroff, reboot or shell",
        what: "how the machine ends [poweroff]",
        set: |parameters, value| {
            parameters.exit = match value {
                "poweroff" => Exit::PowerOff,
                "reboot" => Exit::Reboot,
                "shell" => Exit::Shell,
                _ => return false,
            };
            true
        },
    },
    Known {
        name: "exit-port",
        values: "an I/O port, such as 0xf4",
        what: "where QEMU's isa-debug-exit is; x86 only [none]",
        set: |parameters, value| {
            let digits = value.strip_prefix("0x");
            let port = digits.map(|digits| u16::from_str_radix(digits, 16));
            parameters.exit_port = match port {
                Some(Ok(port)) if cfg!(target_arch = "x86_64") => Some(port),
                _ => return false,
            };
            true
        },
    },
    Known {
        name: "console",
        values: "the name of a terminal, such as ttyS1",
        what: "where the kit talks [console=, else the first of ttyS0 to ttyS3, ttyAMA0, hvc0]",
        set: |parameters, value| {
            parameters.console = Some(value.into());
            !value.is_empty() && !value.contains('/')
        },
    },
];

impl Parameters {
    /// Reads the kernel's command line, and returns what is wrong with it, too. A parameter that is
    /// given several times counts as given last.
    pub fn parse(command_line: &str) -> (Self, Vec<String>) {
        let mut parameters = Self::default();
        let mut mistakes = Vec::new();
        for word in words(command_line) {
            let Some(rest) = word.strip_prefix(PREFIX) else {
                continue;
            };
            let (name, value) = rest.split_once('=').unwrap_or((rest, ""));
            if KERNELS.contains(&name) {
                continue;
            }
            let Some(known) = TABLE.iter().find(|known| known.name == name) else {
                mistakes.push(format!("{PREFIX}{name}: there is no such parameter"));
                continue;
            };
            // What is wrong leaves nothing behind.
            let mut changed = parameters.clone();
            match (known.set)(&mut changed, value) {
                true => parameters = changed,
                false => mistakes.push(format!(
                    "{PREFIX}{name}={value}: it has to be {}",
                    known.values
                )),
            }
        }
        (parameters, mistakes)
    }
}

/// The words of a command line. As in the kernel's next_arg(), white space between double quotes
/// belongs to a word, and the quotes do not.
pub fn words(command_line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quoted = false;
    for c in command_line.chars() {
        match c {
            '"' => quoted = !quoted,
            c if c.is_whitespace() && !quoted => words.push(std::mem::take(&mut word)),
            c => word.push(c),
        }
    }
    words.push(word);
    words.retain(|word| !word.is_empty());
    words
}

/// The table, for people.
fn help() -> String {
    let mut text = String::new();
    for Known {
        name, values, what, ..
    } in TABLE
    {
        let _ = writeln!(text, "#   {PREFIX}{name}=  {what}: {values}");
    }
    text
}

/// Prints what is wrong with the command line, and what would be right.
pub fn explain(mistakes: &[String]) {
    println!("KTAP version 1\n1..1");
    for mistake in mistakes {
        println!("# {mistake}");
    }
    print!("# The parameters are:\n{}", help());
    println!("not ok 1 command line");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good(command_line: &str) -> Parameters {
        let (parameters, mistakes) = Parameters::parse(command_line);
        assert!(mistakes.is_empty(), "{mistakes:?}");
        parameters
    }

    #[test]
    fn nothing_is_asked_for() {
        assert_eq!(good("console=ttyS0 quiet\n"), Parameters::default());
    }

    #[test]
    fn each_parameter() {
        let parameters = good(
            "quiet suspend.test=status-early suspend.device=virtio0,virtio12 suspend.data=lost \
             suspend.exit=reboot suspend.exit-port=0xf4 suspend.console=hvc0",
        );
        assert_eq!(
            parameters,
            Parameters {
                test: Selection::Named("status-early".into()),
                devices: vec!["virtio0".into(), "virtio12".into()],
                data: Data::Lost,
                exit: Exit::Reboot,
                exit_port: Some(0xf4),
                console: Some("hvc0".into()),
            }
        );
    }

    #[test]
    fn the_last_one_counts() {
        assert_eq!(
            good("suspend.exit=shell suspend.exit=poweroff").exit,
            Exit::PowerOff
        );
        assert_eq!(good("suspend.test=x suspend.test=all").test, Selection::All);
    }

    #[test]
    fn what_is_wrong_is_said_and_leaves_nothing_behind() {
        for (word, says) in [
            (
                "suspend.tests=all",
                "suspend.tests: there is no such parameter",
            ),
            ("suspend.test", "suspend.test=: it has to be all or"),
            (
                "suspend.device=vda",
                "suspend.device=vda: it has to be virtioN",
            ),
            (
                "suspend.device=virtio0,",
                "suspend.device=virtio0,: it has to be virtioN",
            ),
            (
                "suspend.device=virtio",
                "suspend.device=virtio: it has to be virtioN",
            ),
            (
                "suspend.data=Lost",
                "suspend.data=Lost: it has to be keep or lost",
            ),
            (
                "suspend.exit=halt",
                "suspend.exit=halt: it has to be poweroff, reboot or shell",
            ),
            (
                "suspend.exit-port=244",
                "suspend.exit-port=244: it has to be an I/O port",
            ),
            (
                "suspend.exit-port=0x10000",
                "suspend.exit-port=0x10000: it has to be an I/O port",
            ),
            (
                "suspend.console=/dev/ttyS0",
                "suspend.console=/dev/ttyS0: it has to be the name",
            ),
        ] {
            let (parameters, mistakes) = Parameters::parse(word);
            assert_eq!(mistakes.len(), 1, "{word}");
            assert!(mistakes[0].starts_with(says), "{}", mistakes[0]);
            assert_eq!(parameters, Parameters::default(), "{word}");
        }
    }

    #[test]
    fn the_rest_counts_beside_a_mistake() {
        let (parameters, mistakes) = Parameters::parse("suspend.exit=reboot suspend.x=1 suspend.y");
        assert_eq!(mistakes.len(), 2);
        assert_eq!(parameters.exit, Exit::Reboot);
    }

    #[test]
    fn one_of_the_kernel_is_left_to_it() {
        assert_eq!(good("suspend.pm_test_delay=5"), Parameters::default());
    }

    #[test]
    fn quotes_as_the_kernel_has_them() {
        assert_eq!(
            words(" a  \"b c\" d=\"e f\"\n"),
            ["a", "b c", "d=e f"].map(str::to_string)
        );
        let parameters = good("suspend.test=\"a case\" \"suspend.data=lost\"");
        assert_eq!(parameters.test, Selection::Named("a case".into()));
        assert_eq!(parameters.data, Data::Lost);
    }

    #[test]
    fn every_parameter_is_explained() {
        let text = help();
        for known in TABLE {
            assert!(text.contains(&format!("suspend.{}=", known.name)));
        }
    }
}
