//! The head's path in the one spelling that rules and policies are about, in which it is sent on too.

use meshwork_decision::{Cause, normal_path};
use meshwork_http1::{KnownName, RequestHead};

use crate::error::Failure;

/// Brings the head's path into normal form.
///
/// # Errors
/// The normal form is no target; cannot happen for a path that was one.
pub(crate) fn normalize(head: &mut RequestHead) -> Result<(), Failure> {
    let Some(path) = normal_path(head.target.path()) else { return Ok(()) };
    let internal = |why: String| Failure::local(Cause::Internal).because(why);
    if let Some(authority) = head.target.authority().map(str::to_owned) {
        // The new target is in origin form, which names no authority.
        head.fields.set_known(KnownName::Host, authority).map_err(|error| internal(error.to_string()))?;
    }
    let target = match head.target.query() {
        Some(query) => format!("{path}?{query}"),
        None => path,
    };
    let method = head.method.clone();
    head.target.set(&method, target.as_bytes()).map_err(|error| internal(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absolute_target_keeps_its_authority() {
        let mut head = RequestHead::new();
        head.target.set(&http::Method::GET, b"http://shop.example/a/../b?q=%61").unwrap();
        normalize(&mut head).unwrap();
        assert_eq!(head.target.path_and_query(), "/b?q=%61", "a query is the application's");
        assert_eq!(head.authority(), Some("shop.example"));
    }
}
