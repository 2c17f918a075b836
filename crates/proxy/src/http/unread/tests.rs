use super::*;

fn held(joined: &Joined) -> usize {
    joined.pieces.iter().map(Vec::capacity).sum()
}

#[test]
fn what_is_held_is_what_is_there_and_less_than_a_piece_more_in_whatever_portions_it_came() {
    const ALL: usize = 1 << 20;
    for portion in [1, 100, 1_000, PIECE - 1, PIECE, 3 * PIECE + 1] {
        let (mut joined, data) = (Joined::default(), vec![0; portion]);
        for there in (portion..=ALL).step_by(portion) {
            joined.push(&data);
            let held = held(&joined);
            assert!(held < there + PIECE && held <= (2 * there).max(64), "{held} for {there} by {portion}");
        }
    }
}

#[test]
fn who_keeps_a_piece_keeps_nothing_of_what_is_behind_it() {
    let mut joined = Joined::default();
    joined.push(&vec![0; 4 * PIECE]);
    let kept = joined.pop().unwrap();
    joined.push(&[0; 100]);
    assert!(kept.len() == PIECE && kept.is_unique());
    assert_eq!(held(&joined), 3 * PIECE + 128);
}

#[test]
fn what_was_joined_comes_out_as_it_came_also_where_some_is_taken_between() {
    let (mut joined, mut came, mut out) = (Joined::default(), Vec::new(), Vec::new());
    for (portion, byte) in [(0, 0), (3, 1), (PIECE, 2), (2 * PIECE, 3), (7, 4), (PIECE - 1, 5)] {
        let data = vec![byte; portion];
        came.extend_from_slice(&data);
        joined.push(&data);
        if portion.is_multiple_of(2) {
            out.extend(joined.pop().into_iter().flatten());
        }
    }
    while let Some(piece) = joined.pop() {
        assert!(!piece.is_empty() && piece.len() <= PIECE);
        out.extend(piece);
    }
    assert!(joined.is_empty() && out == came);
}

#[test]
fn where_nearly_all_live_each_new_one_does_not_look_at_all_of_them() {
    let mut living = Living::default();
    let mut all: Vec<_> = (0..128).map(Rc::new).collect();
    all.iter().for_each(|one| living.add(one));
    // What lives is looked at when there is no room: as often as it is found that what is not there any more is there.
    let mut looks = 0;
    for number in 0..1_000 {
        all.swap_remove(0);
        let before = living.0.len();
        all.push(Rc::new(number));
        living.add(&all[127]);
        looks += usize::from(living.0.len() <= before);
    }
    assert!(looks <= 1_000 / 128 + 1, "{looks} looks");
    assert!(living.0.capacity() <= 4 * 128, "room for {} of 128", living.0.capacity());
}
