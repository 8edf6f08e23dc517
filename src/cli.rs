//! The command line: commands and flags. Each command has a file of its own.

use std::process::ExitCode;

use clap::{ArgAction, CommandFactory, Parser, Subcommand, error::ErrorKind};

use crate::config::schema;

mod apps;
mod ask;
mod check;
#[cfg(feature = "demo")]
mod demo;
mod exec;
mod file;
mod health;
mod output;
mod requests;
mod serve;
#[cfg(feature = "demo")]
mod simulate;
mod start;
mod status;
mod table;

use output::{USAGE, failed, print};

const ABOUT: &str = "A rate-limiting reverse proxy in front of Groq's API";

const LONG_ABOUT: &str = "\
A rate-limiting reverse proxy in front of Groq's API.

It delays requests until Groq's rate limits have room for them, retries transient failures, and turns every failure into the
documented error object. Apps only change their base URL: http://127.0.0.1:8787 for the groq SDKs, http://127.0.0.1:8787/openai/v1 for openai's.";

const AFTER: &str = "\
Examples:
  groq-shield                                   in front of https://api.groq.com, on 127.0.0.1:8787
  groq-shield --simulate                        in front of the built-in simulated Groq: no key, no network
  groq-shield exec -- python app.py             run one command behind a shield
  groq-shield check --config groq-shield.toml   show all faults of the file
  groq-shield status --watch                    show limits, waiting requests and apps every second

Configuration: flags and GROQ_SHIELD_* variables (queue.max_wait is GROQ_SHIELD_QUEUE_MAX_WAIT) override the file.
The file: --config, GROQ_SHIELD_CONFIG, ./groq-shield.toml, /etc/groq-shield/groq-shield.toml.

Signals: SIGTERM and SIGINT drain, a second one ends at once; SIGHUP reloads the file.
Exit codes: 0 done; 1 failed while running; 64 wrong command line or configuration; 130, 143 ended by a second SIGINT, SIGTERM;
exec: the command's own.";

#[derive(Debug, Parser)]
#[command(name = "groq-shield", version, disable_version_flag = true, about = ABOUT, long_about = LONG_ABOUT, after_help = AFTER, after_long_help = AFTER)]
#[command(args_conflicts_with_subcommands = true, max_term_width = 120)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: serve::Serve,
    /// Print the version
    #[arg(short = 'v', long, short_alias = 'V', action = ArgAction::Version)]
    version: Option<bool>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the proxy; the default command
    Serve(serve::Serve),
    /// Checks the configuration: prints all faults at once, or the settings in effect
    Check(check::Check),
    /// Compares the same overload with the SDKs alone and through the shield, against a simulated Groq
    #[cfg(feature = "demo")]
    Demo(demo::Demo),
    /// Runs the simulated Groq alone
    #[cfg(feature = "demo")]
    Simulate(simulate::Simulate),
    /// Shows limits, queue, apps, forecast and breaker of a running shield as a table
    Status(status::Status),
    /// Runs a command behind its own shield, with the usual environment variables for base URLs set
    Exec(exec::Exec),
    /// Exits with 0 if a shield is alive (or ready), otherwise 1, for HEALTHCHECK and exec probes
    Health(health::Health),
    /// Writes the JSON schema of the configuration file to standard output, for editors
    Schema,
    /// Prints the version
    Version,
    /// Writes shell completions to standard output
    Completions {
        /// For this shell
        shell: clap_complete::Shell,
    },
    /// Writes the man page to standard output
    Man,
}

/// Runs the command that the process's arguments name.
pub fn run() -> ExitCode {
    match Arguments::try_parse_from(std::env::args_os()) {
        Ok(arguments) => arguments.run(),
        Err(error) => {
            // There is no way to report that the terminal is closed.
            let _ = error.print();
            match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                _ => ExitCode::from(USAGE),
            }
        }
    }
}

impl Arguments {
    fn run(self) -> ExitCode {
        match self.command {
            None => serve::run(self.serve),
            Some(Command::Serve(arguments)) => serve::run(arguments),
            Some(Command::Check(arguments)) => check::run(&arguments),
            #[cfg(feature = "demo")]
            Some(Command::Demo(arguments)) => demo::run(&arguments),
            #[cfg(feature = "demo")]
            Some(Command::Simulate(arguments)) => simulate::run(&arguments),
            Some(Command::Status(arguments)) => status::run(&arguments),
            Some(Command::Exec(arguments)) => exec::run(arguments),
            Some(Command::Health(arguments)) => health::run(&arguments),
            Some(Command::Schema) => print(format!("{:#}\n", schema::schema()).as_bytes()),
            Some(Command::Version) => print(Self::command().render_version().as_bytes()),
            Some(Command::Completions { shell }) => {
                let mut command = Self::command();
                let mut out = Vec::new();
                clap_complete::generate(shell, &mut command, "groq-shield", &mut out);
                print(&out)
            }
            Some(Command::Man) => {
                let mut out = Vec::new();
                match clap_mangen::Man::new(Self::command()).render(&mut out) {
                    Ok(()) => print(&out),
                    Err(error) => failed(&error),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, String> {
        Arguments::try_parse_from(line.split(' ')).map_err(|error| error.to_string())
    }

    #[test]
    fn the_commands_are_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn serve_is_the_default_command() {
        for line in ["groq-shield", "groq-shield --listen 127.0.0.1:0 --upstream http://h --admin 127.0.0.1:0 --config f"] {
            assert!(parse(line).expect(line).command.is_none());
        }
        assert!(matches!(parse("groq-shield serve --listen 127.0.0.1:0").expect("a command").command, Some(Command::Serve(_))));
    }

    #[test]
    fn every_command_of_the_contract_parses() {
        for line in [
            "groq-shield check --config f",
            "groq-shield check --example",
            "groq-shield status --admin http://127.0.0.1:1 --watch --json",
            "groq-shield exec -- python -c pass --config x",
            "groq-shield exec --config f -- true",
            "groq-shield health --admin 127.0.0.1:1 --ready",
            "groq-shield schema",
            "groq-shield completions bash",
            "groq-shield man",
        ] {
            parse(line).expect(line);
        }
        for (line, why) in [
            ("groq-shield exec", "<CMD>"),
            ("groq-shield serv", "serve"),
            ("groq-shield --lisen x", "--listen"),
            ("groq-shield --listen 127.0.0.1:0 check", "cannot be used with"),
        ] {
            let error = parse(line).expect_err(line);
            assert!(error.contains(why), "{line}: {error}");
        }
    }

    #[test]
    fn the_help_tells_examples_and_exit_codes() {
        let help = Arguments::command().render_long_help().to_string();
        for part in
            ["Examples:", "groq-shield exec -- python app.py", "Exit codes:", "64", "GROQ_SHIELD_QUEUE_MAX_WAIT", "SIGHUP"]
        {
            assert!(help.contains(part), "{part}\n{help}");
        }
    }
}
