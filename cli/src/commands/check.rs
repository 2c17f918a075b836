//! `meshwork check -f PATH`: what is wrong with resources, at its line, without running anything.

use std::path::PathBuf;
use std::process::ExitCode;

use meshwork_control_plane::{Checked, check};
use meshwork_resources::{Diagnostic, Severity};
use miette::{GraphicalReportHandler, GraphicalTheme};

use super::Outcome;
use crate::output::{self, Format};

/// Say what is wrong with resources before they are used
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    /// A folder or file of resources; may be given several times, they are checked together
    #[arg(short, long = "filename", value_name = "PATH", required = true)]
    filename: Vec<PathBuf>,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    let checked = check(&arguments.filename)?;
    match arguments.output {
        Format::Table => output::print(&render(&checked))?,
        format => output::value(format, &checked.diagnostics)?,
    }
    let failed = checked.diagnostics.iter().any(|found| found.severity == Severity::Error);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn render(checked: &Checked) -> String {
    let mut out: String = checked.diagnostics.iter().map(|found| snippet(checked, found)).collect();
    let count = |severity| checked.diagnostics.iter().filter(|found| found.severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    out.push_str(&format!("{} objects good, {errors} errors, {warnings} warnings\n", checked.objects));
    out
}

/// The finding with the lines around it, where its text is at hand.
fn snippet(checked: &Checked, found: &Diagnostic) -> String {
    let Some(text) = checked.texts.get(&found.file) else { return format!("{found}\n") };
    let mut out = String::new();
    // The lines around a fault in a Secret may hold the key itself.
    if text.contains("kind: Secret") {
        return plain(found);
    }
    let theme = if std::io::IsTerminal::is_terminal(&std::io::stdout()) {
        GraphicalTheme::unicode()
    } else {
        GraphicalTheme::unicode_nocolor()
    };
    let report = found.clone().with_source(text);
    match GraphicalReportHandler::new_themed(theme).render_report(&mut out, &report) {
        Ok(()) => out + "\n",
        Err(_) => plain(found),
    }
}

fn plain(found: &Diagnostic) -> String {
    let help = found.help.as_ref().map(|help| format!("  help: {help}\n")).unwrap_or_default();
    format!("{} {found}\n{help}", found.code)
}
