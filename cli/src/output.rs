//! What commands print. A pipe that was closed is no error: nobody wants the rest.

use std::borrow::Cow;
use std::io::{self, Write};

use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use serde::Serialize;

/// How a command's answer is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// A JSON array, or object where one thing was asked for.
    Json,
    /// The same as YAML.
    Yaml,
}

/// Text as a terminal may have it. Much of what is printed was made by strangers (ids, paths, what failed): a control
/// character, of C1 too, could forge lines or clear the screen, and one that turns the direction of writing shows another text.
pub(crate) fn plain(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unfit) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.replace(is_unfit, " "))
}

fn is_unfit(c: char) -> bool {
    let turns =
        matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    turns || c.is_control() && !matches!(c, '\n' | '\t')
}

/// The same of text that has colours and weights (ECMA-48's SGR) of ours: of the sequences that begin with ESC those alone stay.
fn styled(text: &str) -> String {
    let mut parts = text.split('\x1b');
    let mut out = plain(parts.next().unwrap_or_default()).into_owned();
    for part in parts {
        let arguments = part
            .strip_prefix('[')
            .map(|rest| rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';'));
        let is_style = arguments.is_some_and(|rest| rest.starts_with('m'));
        out.push(if is_style { '\x1b' } else { ' ' });
        out.push_str(&plain(part));
    }
    out
}

/// The same for JSON, which stays what it was: within its strings such characters may be written by their numbers.
pub(crate) fn plain_json(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unfit) {
        return Cow::Borrowed(text);
    }
    let written = |c: char| if is_unfit(c) { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() };
    Cow::Owned(text.chars().map(written).collect())
}

/// Writes text to stdout.
///
/// # Errors
/// Whatever the system says, except that the reader has gone.
pub(crate) fn print(text: &str) -> io::Result<()> {
    raw(&plain(text))
}

/// Writes text that has styles of ours to stdout.
///
/// # Errors
/// Whatever the system says, except that the reader has gone.
pub(crate) fn print_styled(text: &str) -> io::Result<()> {
    raw(&styled(text))
}

/// Empties the terminal.
///
/// # Errors
/// Whatever the system says, except that the reader has gone.
pub(crate) fn clear() -> io::Result<()> {
    raw("\x1b[H\x1b[2J")
}

/// Writes text to stdout as it is: what is written to be read again, as YAML, stays what it was.
///
/// # Errors
/// Whatever the system says, except that the reader has gone.
pub(crate) fn raw(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    ignore_closed(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// Writes a line to stdout; false when nobody reads any more.
///
/// # Errors
/// Whatever else the system says.
pub(crate) fn line(text: &str) -> io::Result<bool> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{}", plain(text)).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error),
    }
}

fn ignore_closed(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Prints a value as JSON or YAML.
///
/// # Errors
/// The system refuses the bytes.
pub(crate) fn value(format: Format, value: &impl Serialize) -> Result<(), Box<dyn std::error::Error>> {
    match format {
        Format::Yaml => raw(&serde_saphyr::to_string(value)?)?,
        Format::Json | Format::Table => {
            print(&plain_json(&format!("{}\n", serde_json::to_string_pretty(value)?)))?;
        }
    }
    Ok(())
}

/// Prints rows below headers.
///
/// # Errors
/// The system refuses the bytes.
pub(crate) fn table(headers: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> io::Result<()> {
    print(&tabled(headers, rows))
}

/// Rows below headers.
pub(crate) fn tabled(headers: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(headers.to_vec());
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// Tells on stderr what went wrong, with its causes.
pub(crate) fn failure(error: &dyn std::error::Error) {
    let mut text = format!("error: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    note(&text);
}

/// Writes a line to stderr.
pub(crate) fn note(text: &str) {
    // Where stderr is closed there is nobody to tell.
    let _ = writeln!(io::stderr().lock(), "{}", plain(text));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_strangers_wrote_does_nothing_to_a_terminal_and_json_stays_what_it_was() {
        let id = "a\u{9b}2J\u{85}\u{1b}[2J\u{7f}é";
        assert_eq!(plain(&format!("{id}\n\tb\n")), "a 2J  [2J é\n\tb\n");
        let json = serde_json::to_string_pretty(&serde_json::json!({"id": id})).unwrap();
        let written = plain_json(&json);
        assert!(!written.contains(is_unfit), "{written:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&written).unwrap()["id"], id);
    }

    #[test]
    fn of_what_is_written_in_colour_the_colours_stay_and_nothing_else() {
        let ours = "\u{1b}[31mred\u{1b}[0m \u{1b}[36;1;4mlink\u{1b}[0m";
        assert_eq!(styled(ours), ours);
        let theirs = "\u{1b}[2Jx\u{1b}]0;title\u{7}\u{9b}2J\u{202e}txt\u{1b}";
        assert_eq!(styled(&format!("{theirs}{ours}")), format!(" [2Jx ]0;title  2J txt {ours}"));
    }
}
