//! What there is room for on a terminal, on which a table is drawn again and again.

use std::fmt;

use rustix::termios::tcgetwinsize;

use super::Row;

/// Lines that are no rows: the head, an empty one, and that of the cursor.
const OTHER_LINES: usize = 3;

/// Rows for which there is no room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LeftOut {
    pub(super) rows: usize,
    /// Of these, whose calls fail, or whose breaker is not closed.
    in_trouble: usize,
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = match self.in_trouble {
            0 => "that do less and well".to_owned(),
            some if some == self.rows => "in trouble too".to_owned(),
            some => format!("{some} of them in trouble too"),
        };
        write!(f, "… and {} more, {how}; -n shows one namespace", self.rows)
    }
}

/// See the module's text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Screen {
    columns: usize,
    lines: usize,
}

impl Screen {
    /// The one that stdout is; none: it does not say how large it is.
    pub(super) fn of_stdout() -> Option<Self> {
        let size = tcgetwinsize(std::io::stdout()).ok()?;
        let (columns, lines) = (usize::from(size.ws_col), usize::from(size.ws_row));
        (columns > 0 && lines > 0).then_some(Self { columns, lines })
    }

    /// Keeps as many rows as there is room for, in their order: who is in trouble, then who is called most. Gives who is left
    /// out. `more`: another line says who has not answered.
    pub(super) fn keep(&self, rows: &mut Vec<Row>, more: bool) -> LeftOut {
        let mut room = self.lines.saturating_sub(OTHER_LINES + usize::from(more));
        if rows.len() > room {
            // That some are left out takes a line.
            room = room.saturating_sub(1);
        }
        let mut order: Vec<usize> = (0..rows.len()).collect();
        let rate = |at: usize| rows[at].requests_per_second.unwrap_or_default();
        order.sort_by(|one, other| {
            let trouble = rows[*other].is_in_trouble().cmp(&rows[*one].is_in_trouble());
            trouble.then(rate(*other).total_cmp(&rate(*one)))
        });
        let without = order.split_off(room.max(1).min(order.len()));
        let in_trouble = without.iter().filter(|at| rows[**at].is_in_trouble()).count();
        let left_out = LeftOut { rows: without.len(), in_trouble };
        let mut at = 0..;
        rows.retain(|_| at.next().is_some_and(|at| order.contains(&at)));
        left_out
    }

    /// Lines that do not go on in the next one.
    pub(super) fn cut(&self, text: &str) -> String {
        let cut = |line: &str| line.chars().take(self.columns).chain(['\n']).collect::<String>();
        text.lines().map(cut).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn row(service: &str, rate: f64, success: f64, breaker: &str) -> Row {
        Row {
            kind: None,
            service: service.to_owned(),
            requests_per_second: Some(rate),
            success: Some(success),
            p50_ms: None,
            p99_ms: None,
            breakers: BTreeMap::from([(breaker.to_owned(), 1)]),
            headroom_percent: None,
            held_back_percent: None,
            overload: None,
        }
    }

    #[test]
    fn where_there_is_no_room_for_all_who_fails_and_who_is_called_most_stays_in_the_order_of_names() {
        let closed = "closed (:80)";
        let all = || {
            vec![
                row("a", 1.0, 100.0, closed),
                row("b", 2.0, 100.0, "closed, would be open (:80)"),
                row("c", 900.0, 100.0, closed),
                row("d", 3.0, 99.5, closed),
                row("e", 800.0, 100.0, closed),
            ]
        };
        let kept = |lines: usize, silent: bool| {
            let mut rows = all();
            let left_out = Screen { columns: 80, lines }.keep(&mut rows, silent);
            // What is written down then, each with its end of line, and the cursor below.
            let written = 1 + rows.len() + usize::from(left_out.rows > 0) + usize::from(silent) + 1;
            assert!(written < lines || rows.len() == 1, "the head stays in view: {lines}");
            let names = rows.into_iter().map(|row| row.service).collect::<String>();
            (names, left_out.rows, left_out.in_trouble)
        };
        let is = |names: &str, rows, in_trouble| (names.to_owned(), rows, in_trouble);
        assert_eq!(kept(8, false), is("abcde", 0, 0));
        assert_eq!(kept(8, true), is("bcd", 2, 0));
        assert_eq!(kept(7, false), is("bcd", 2, 0));
        assert_eq!(kept(6, false), is("bd", 3, 0));
        assert_eq!(kept(5, false), is("d", 4, 1));
        assert_eq!(kept(1, true), is("d", 4, 1), "one at least");
    }

    #[test]
    fn of_those_without_room_it_is_said_how_many_are_in_trouble() {
        let told = |rows, in_trouble| LeftOut { rows, in_trouble }.to_string();
        assert_eq!(told(4, 0), "… and 4 more, that do less and well; -n shows one namespace");
        assert_eq!(told(4, 1), "… and 4 more, 1 of them in trouble too; -n shows one namespace");
        assert_eq!(told(4, 4), "… and 4 more, in trouble too; -n shows one namespace");
    }

    #[test]
    fn a_line_ends_with_the_terminal() {
        let screen = Screen { columns: 4, lines: 24 };
        assert_eq!(screen.cut("abcdef\nä…ab cd\nab\n"), "abcd\nä…ab\nab\n");
    }
}
