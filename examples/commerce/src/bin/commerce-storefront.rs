//! The storefront service's process; see `commerce::storefront`.

use std::process::ExitCode;

use clap::Parser;
use commerce::service::run;
use commerce::storefront::{Settings, main as serve};

fn main() -> ExitCode {
    let settings = Settings::parse();
    run("storefront", |shutdown| serve(settings, shutdown))
}
