//! `meshwork check -f PATH`: what is wrong with resources, at its line, without running anything.

use std::io::IsTerminal as _;
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
        Format::Table => output::print_styled(&render(&checked, std::io::stdout().is_terminal()))?,
        format => output::value(format, &checked.diagnostics)?,
    }
    let failed = checked.diagnostics.iter().any(|found| found.severity == Severity::Error);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn render(checked: &Checked, in_colour: bool) -> String {
    let mut out: String =
        checked.diagnostics.iter().map(|found| snippet(checked, found, in_colour)).collect();
    let count = |severity| checked.diagnostics.iter().filter(|found| found.severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    out.push_str(&format!("{} objects good, {errors} errors, {warnings} warnings\n", checked.objects));
    out
}

/// The finding with the lines around it, where its text is at hand.
fn snippet(checked: &Checked, found: &Diagnostic, in_colour: bool) -> String {
    let Some(text) = checked.texts.get(&found.file) else { return format!("{found}\n") };
    let mut out = String::new();
    // The lines around a fault in a Secret may hold the key itself.
    if text.contains("kind: Secret") {
        return plain(found);
    }
    let theme = if in_colour { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What is printed about a file with these bytes.
    fn told(text: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("f.yaml");
        std::fs::write(&file, text).unwrap();
        render(&check(&[&file]).unwrap(), false)
    }

    /// A namespace on one line of this many characters, with `end` behind them.
    fn on_one_line(letter: char, length: usize, end: &str) -> String {
        let long = String::from(letter).repeat(length);
        format!(
            "{{apiVersion: v1, kind: Namespace, metadata: {{name: a, annotations: {{b: {long}}}}}, {end}}}"
        )
    }

    #[test]
    fn a_terminal_gets_colours() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("f.yaml");
        std::fs::write(&file, "apiVersion: v1\nkind: Namespace\nwrong: 1\n").unwrap();
        let checked = check(&[&file]).unwrap();
        assert!(render(&checked, true).contains("\x1b["));
        assert!(!render(&checked, false).contains("\x1b["));
    }

    #[test]
    fn of_a_long_line_what_is_near_the_fault_is_shown() {
        let text = on_one_line('x', 70_000, "wrong: 1, spec: {}");
        let column = text.find("wrong").unwrap() + 1;
        for text in [text.clone(), format!("{text}\r\n"), format!("# x\r\n{text}\r\n# y\r\n")] {
            let out = told(&text);
            assert!(out.contains(&format!(":{column}]")), "{out}");
            assert!(out.contains("xxx}}, wrong: 1, spec: {}}\n"), "{out}");
            assert!(out.lines().all(|line| line.chars().count() < 320), "{out}");
            let lines: Vec<&str> = out.lines().collect();
            let shown = lines.iter().position(|line| line.contains("wrong: 1")).unwrap();
            let place = lines[shown].chars().collect::<String>().find("wrong").unwrap();
            let place = lines[shown][..place].chars().count();
            assert_eq!(
                lines[shown + 1].chars().position(|char| char == '─' || char == '┬'),
                Some(place),
                "{out}"
            );
        }
    }

    #[test]
    fn long_lines_of_any_letters_are_shown_in_part() {
        for letter in ['ä', '漢', '\t', '😀'] {
            let line = on_one_line(letter, 70_000, "wrong: 1");
            for text in [
                line.clone(),
                format!("{line}\n---\n{line}\n---\n{line}"),
                format!("{line}\r\n---\r\n{line}"),
            ] {
                let out = told(&text);
                assert!(out.contains("wrong: 1}\n"), "{out}");
                assert!(out.lines().all(|line| line.chars().count() < 1200), "{out}");
            }
        }
        // At the very end, where nothing is left to point at; and nothing but that.
        let open = on_one_line('x', 70_000, "");
        let open = open.trim_end_matches('}');
        for text in [
            open.to_owned(),
            format!("{open}\n"),
            format!("{open}\r\n"),
            format!("a: '{}", "x".repeat(70_000)),
        ] {
            let out = told(&text);
            assert!(out.contains("1 errors") && out.contains("f.yaml:"), "{out}");
            assert!(out.lines().all(|line| line.chars().count() < 320), "{out}");
        }
    }

    #[test]
    fn what_moves_a_terminal_is_not_shown_as_it_is() {
        let out = told("apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\nwrong: \"\u{9b}31m\"\n");
        assert!(out.contains("wrong: \"\u{fffd}31m\"\n"), "{out}");
    }
}
