//! Messages that leave things unsaid, laid over each other: of each field the narrower word holds, where there is one.

use crate::v1;

/// A message of which not everything has to be said.
pub trait Layered: Clone {
    /// What is said here, and for the rest what a wider one says.
    #[must_use]
    fn or(&self, wider: &Self) -> Self;

    /// Tells the path below `at` of each field that is said, as `retry.budget.percent`.
    fn said(&self, at: &str, tell: &mut dyn FnMut(String));

    /// The same of every field that there is.
    fn fields(at: &str, tell: &mut dyn FnMut(String));
}

include!(concat!(env!("OUT_DIR"), "/layered.rs"));

fn below(at: &str, name: &str) -> String {
    if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") }
}

/// A value is said where it is not its type's default.
fn plain<T: Clone + Default + PartialEq>(own: &T, wider: &T) -> T {
    if *own == T::default() { wider.clone() } else { own.clone() }
}

fn plain_said<T: Default + PartialEq>(own: &T, at: &str, name: &str, tell: &mut dyn FnMut(String)) {
    if *own != T::default() {
        tell(below(at, name));
    }
}

/// A value is said where it is there, and nothing of it comes from elsewhere.
fn whole<T: Clone>(own: &Option<T>, wider: &Option<T>) -> Option<T> {
    own.as_ref().or(wider.as_ref()).cloned()
}

fn whole_said<T>(own: &Option<T>, at: &str, name: &str, tell: &mut dyn FnMut(String)) {
    if own.is_some() {
        tell(below(at, name));
    }
}

fn deep<T: Layered>(own: &Option<T>, wider: &Option<T>) -> Option<T> {
    match (own, wider) {
        (Some(own), Some(wider)) => Some(own.or(wider)),
        (own, wider) => whole(own, wider),
    }
}

fn deep_said<T: Layered>(own: &Option<T>, at: &str, name: &str, tell: &mut dyn FnMut(String)) {
    if let Some(own) = own {
        own_said(own, at, name, tell);
    }
}

/// That it is there is a word too, where none is said of what is in it.
fn own_said<T: Layered>(own: &T, at: &str, name: &str, tell: &mut dyn FnMut(String)) {
    let (path, mut any) = (below(at, name), false);
    own.said(&path, &mut |said| {
        any = true;
        tell(said);
    });
    if !any {
        tell(path);
    }
}

fn deep_fields<T: Layered>(at: &str, name: &str, tell: &mut dyn FnMut(String)) {
    T::fields(&below(at, name), tell);
}
