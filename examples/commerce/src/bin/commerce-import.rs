//! Loads published files into the shop; see `commerce::import`.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use commerce::import::{Settings, import};

fn main() -> ExitCode {
    let settings = Settings::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    // A reader that has gone away (`| head`) is no failure of the import.
    let mut say = |line: &str| drop(writeln!(io::stdout(), "{line}"));
    let result = match runtime {
        Ok(runtime) => runtime.block_on(import(&settings, &mut say)).map_err(|e| e.to_string()),
        Err(error) => Err(error.to_string()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            drop(writeln!(io::stderr(), "commerce-import: {error}"));
            ExitCode::FAILURE
        }
    }
}
