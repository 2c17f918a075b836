//! A file's documents. A line that begins with `---` or `...` ends one wherever it stands, even within a quoted or
//! block text (YAML 1.2.2, section 9.1.2), so lines are all one has to look at, and a document that does not parse
//! cannot swallow its neighbours.

/// One document: its text, and the line of the file where that begins.
#[derive(Debug, PartialEq)]
pub(super) struct Part<'t> {
    pub(super) text: &'t str,
    pub(super) line: u32,
}

/// The documents of a text that have any content.
pub(super) fn documents(text: &str) -> impl Iterator<Item = Part<'_>> {
    let mut rest = text.strip_prefix('\u{FEFF}').unwrap_or(text);
    let mut line = 1;
    std::iter::from_fn(move || {
        while !rest.is_empty() {
            let (len, lines) = extent(rest);
            let (part, after) = rest.split_at(len);
            let found = Part { text: part, line };
            rest = after;
            line += lines;
            if part.lines().any(is_content) {
                return Some(found);
            }
        }
        None
    })
}

/// Bytes and lines up to the next marker; the marker's own line begins the document.
fn extent(text: &str) -> (usize, u32) {
    let mut len = 0;
    let mut lines = 0;
    for line in text.split_inclusive('\n') {
        if lines > 0 && is_marker(line, "---") {
            break;
        }
        len += line.len();
        lines += 1;
        if is_marker(line, "...") {
            break;
        }
    }
    (len, lines)
}

fn is_marker(line: &str, marker: &str) -> bool {
    line.strip_prefix(marker).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

/// Whether a line is more than a marker, a comment or the `%YAML` directive.
fn is_content(line: &str) -> bool {
    let line = if is_marker(line, "---") || is_marker(line, "...") { &line[3..] } else { line };
    let text = line.trim();
    !text.is_empty() && !text.starts_with('#') && !line.starts_with("%YAML ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &str) -> Vec<(u32, &str)> {
        documents(text).map(|part| (part.line, part.text)).collect()
    }

    #[test]
    fn splits_at_markers_and_keeps_lines() {
        assert_eq!(split("a: 1\n---\nb: 2\n"), [(1, "a: 1\n"), (2, "---\nb: 2\n")]);
        assert_eq!(split("---\na: 1\n...\n# end\n---\nb: 2"), [(1, "---\na: 1\n...\n"), (5, "---\nb: 2")]);
        assert_eq!(split("--- {a: 1}\r\n--- \r\nb: 2\r\n"), [(1, "--- {a: 1}\r\n"), (2, "--- \r\nb: 2\r\n")]);
    }

    #[test]
    fn leaves_out_what_has_no_content() {
        assert_eq!(split(""), []);
        assert_eq!(split("---\n---\n# only this\n---\n"), []);
        assert_eq!(split("%YAML 1.2\n---\na: 1"), [(2, "---\na: 1")]);
    }

    #[test]
    fn is_not_fooled_by_dashes() {
        assert_eq!(split("a:\n  ---\nb: ---x\n----\n"), [(1, "a:\n  ---\nb: ---x\n----\n")]);
    }
}
