//! What there is room for on a terminal, on which a table is drawn again and again.

use rustix::termios::tcgetwinsize;

use super::Row;

/// Lines that are no rows: the head, that some are left out, who has not answered, and an empty one.
const OTHER_LINES: usize = 4;

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

    /// Keeps as many rows as there is room for, in their order: who is in trouble, then who is called most. Gives how many are left
    /// out.
    pub(super) fn keep(&self, rows: &mut Vec<Row>) -> usize {
        let room = self.lines.saturating_sub(OTHER_LINES).max(1);
        let mut order: Vec<usize> = (0..rows.len()).collect();
        let rate = |at: usize| rows[at].requests_per_second.unwrap_or_default();
        order.sort_by(|one, other| {
            let trouble = rows[*other].is_in_trouble().cmp(&rows[*one].is_in_trouble());
            trouble.then(rate(*other).total_cmp(&rate(*one)))
        });
        order.truncate(room);
        let left_out = rows.len() - order.len();
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
        let kept = |lines: usize| {
            let mut rows = all();
            let left_out = Screen { columns: 80, lines }.keep(&mut rows);
            (rows.into_iter().map(|row| row.service).collect::<String>(), left_out)
        };
        assert_eq!(kept(9), ("abcde".to_owned(), 0));
        assert_eq!(kept(7), ("bcd".to_owned(), 2));
        assert_eq!(kept(6), ("bd".to_owned(), 3));
        assert_eq!(kept(1), ("d".to_owned(), 4), "one at least");
    }

    #[test]
    fn a_line_ends_with_the_terminal() {
        let screen = Screen { columns: 4, lines: 24 };
        assert_eq!(screen.cut("abcdef\nä…ab cd\nab\n"), "abcd\nä…ab\nab\n");
    }
}
