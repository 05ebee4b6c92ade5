//! `picket`: hands the arguments to the command line, which says how it ended.

use std::process::ExitCode;

fn main() -> ExitCode {
    agent::cli::run(std::env::args_os())
}
