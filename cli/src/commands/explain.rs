//! `meshwork explain MW1042`: the page of an error code.

use std::process::ExitCode;

use rust_embed::RustEmbed;

use super::Outcome;
use crate::output;

/// The pages, compiled in.
#[derive(RustEmbed)]
#[folder = "../docs/errors"]
struct Pages;

/// Explain an error code
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    /// The code, as MW1042
    #[arg(value_name = "CODE")]
    code: String,
}

/// The page of a code, in any case.
fn page(code: &str) -> Option<String> {
    let file = Pages::get(&format!("{}.md", code.to_ascii_uppercase()))?;
    Some(String::from_utf8_lossy(&file.data).into_owned())
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    let Some(page) = page(&arguments.code) else {
        let known: Vec<String> =
            Pages::iter().filter_map(|name| name.strip_suffix(".md").map(str::to_owned)).collect();
        let (first, last) = (known.iter().min(), known.iter().max());
        output::note(&format!(
            "error: there is no error code `{}`; codes are written as {} to {}",
            arguments.code,
            first.map_or("MW1001", String::as_str),
            last.map_or("MW7999", String::as_str)
        ));
        return Ok(ExitCode::FAILURE);
    };
    output::print(&page)?;
    Ok(ExitCode::SUCCESS)
}
