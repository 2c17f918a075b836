//! The catalog service's process; see `commerce::catalog`.

use std::process::ExitCode;

use clap::Parser;
use commerce::catalog::{Settings, main as serve};
use commerce::service::run;

fn main() -> ExitCode {
    let settings = Settings::parse();
    run("catalog", |shutdown| serve(settings, shutdown))
}
