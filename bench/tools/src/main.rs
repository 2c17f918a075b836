//! Load and a service that no packaged program provides:
//!
//! ```text
//! bench-tools open-loop ADDRESS HOST PATH CONNECTIONS RATE SECONDS
//! bench-tools grpc ADDRESS HOST PATH CONNECTIONS STREAMS SIZE MESSAGES SECONDS
//! bench-tools grpc-echo ADDRESS
//! bench-tools shop-service MODEL SERVICE
//! bench-tools shop-load ADDRESS HOST PATH RATE SECONDS
//! ```
//!
//! A load prints one line, `RESULT ` and a JSON object, and ends with 1 when an answer was not what it has to be.

mod echo;
mod figures;
mod grpc;
mod open_loop;
mod shop;

use std::error::Error;
use std::process::ExitCode;
use std::str::FromStr;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    match run(&mut arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-tools: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &mut impl Iterator<Item = String>) -> Result<(), Box<dyn Error>> {
    match arguments.next().as_deref() {
        Some("open-loop") => open_loop::run(&open_loop::Plan {
            address: next(arguments)?,
            host: next(arguments)?,
            path: next(arguments)?,
            connections: next(arguments)?,
            rate: next(arguments)?,
            seconds: next(arguments)?,
        }),
        Some("grpc") => grpc::run(grpc::Plan {
            address: next(arguments)?,
            host: next(arguments)?,
            path: next(arguments)?,
            connections: next(arguments)?,
            streams: next(arguments)?,
            size: next(arguments)?,
            messages: next(arguments)?,
            seconds: next(arguments)?,
        }),
        Some("grpc-echo") => echo::run(next(arguments)?),
        Some("shop-service") => shop::service::run(&next::<String>(arguments)?, &next::<String>(arguments)?),
        Some("shop-load") => shop::load::run(shop::load::Plan {
            address: next(arguments)?,
            host: next(arguments)?,
            path: next(arguments)?,
            rate: next(arguments)?,
            seconds: next(arguments)?,
        }),
        _ => Err("the first argument is one of: open-loop, grpc, grpc-echo, shop-service, shop-load".into()),
    }
}

fn next<T: FromStr<Err: Error + 'static>>(
    arguments: &mut impl Iterator<Item = String>,
) -> Result<T, Box<dyn Error>> {
    let text = arguments.next().ok_or("an argument is missing")?;
    text.parse().map_err(|error| format!("{text:?}: {error}").into())
}
