//! The inventory service's process; see `commerce::inventory`.

use std::process::ExitCode;

use clap::Parser;
use commerce::inventory::{Settings, main as serve};
use commerce::service::run;

fn main() -> ExitCode {
    let settings = Settings::parse();
    run("inventory", |shutdown| serve(settings, shutdown))
}
