//! Two policies of which one is about less than the other, laid over each other: of each field, however deep it is, the
//! narrower word holds where there is one. A list is one word. Where a field has others beside it that exclude it
//! (`one_of`), these are not taken from the wider one.

use std::collections::BTreeMap;

use super::duration::GatewayDuration;
use crate::span::{Span, Spanned};

/// What can be laid over a wider one.
pub(crate) trait Overlay: Clone {
    /// What is written here, and for the rest what the wider one writes.
    fn over(&self, wider: &Self) -> Self;

    /// All of it as if it stood there: what somebody else wrote has no place in this file.
    fn placed(self, at: Span) -> Self {
        let _ = at;
        self
    }

    /// Tells the paths of all fields below.
    #[cfg(test)]
    fn fields(at: &str, tell: &mut dyn FnMut(&str)) {
        tell(at);
    }
}

/// What may be left out.
pub(crate) trait Absent {
    fn is_there(&self) -> bool;
}

impl<T> Absent for Option<T> {
    fn is_there(&self) -> bool {
        self.is_some()
    }
}

impl<T: Overlay> Overlay for Option<T> {
    fn over(&self, wider: &Self) -> Self {
        match (self, wider) {
            (Some(own), Some(wider)) => Some(own.over(wider)),
            (own, wider) => own.as_ref().or(wider.as_ref()).cloned(),
        }
    }

    fn placed(self, at: Span) -> Self {
        self.map(|own| own.placed(at))
    }

    #[cfg(test)]
    fn fields(at: &str, tell: &mut dyn FnMut(&str)) {
        T::fields(at, tell);
    }
}

impl<T: Clone> Overlay for Vec<T> {
    fn over(&self, wider: &Self) -> Self {
        if self.is_empty() { wider.clone() } else { self.clone() }
    }
}

impl<T: Overlay> Overlay for Spanned<T> {
    fn over(&self, wider: &Self) -> Self {
        let wider = wider.inner.clone().placed(self.span);
        Self::new(self.inner.over(&wider), self.span)
    }

    fn placed(self, at: Span) -> Self {
        Self::new(self.inner.placed(at), at)
    }

    #[cfg(test)]
    fn fields(at: &str, tell: &mut dyn FnMut(&str)) {
        T::fields(at, tell);
    }
}

/// Values that are one word.
macro_rules! words {
    ($($name:ty),* $(,)?) => {
        $(impl $crate::decode::overlay::Overlay for $name {
            fn over(&self, _: &Self) -> Self {
                self.clone()
            }
        })*
    };
}
pub(crate) use words;

words!(bool, u32, String, GatewayDuration, BTreeMap<String, String>);

/// A [`record!`](super::record) that can be laid over a wider one.
macro_rules! layered {
    (
        $(#[$meta:meta])*
        pub struct $name:ident { $($fields:tt)* }
        $(one_of { $($groups:tt)* })*
    ) => {
        $crate::decode::record! { $(#[$meta])* pub struct $name { $($fields)* } }
        $crate::decode::overlay::layered! { @impl $name [$({ $($groups)* })*] $($fields)* }
    };
    (@impl $name:ident [$({ $($groups:tt)* })*] $(
        $(#[$field_meta:meta])*
        pub $field:ident : $ty:ty $(as $json:literal)? $([$bounds:expr])?
    ),* $(,)?) => {
        impl $crate::decode::overlay::Overlay for $name {
            fn over(&self, wider: &Self) -> Self {
                #[allow(unused_mut, reason = "of one that has no fields which exclude each other")]
                let mut wider = wider.clone();
                $($crate::decode::overlay::layered! { @one_of self wider [] $($groups)* })*
                Self { $($field: $crate::decode::overlay::Overlay::over(&self.$field, &wider.$field)),* }
            }

            fn placed(self, at: $crate::span::Span) -> Self {
                Self { $($field: $crate::decode::overlay::Overlay::placed(self.$field, at)),* }
            }

            #[cfg(test)]
            fn fields(at: &str, tell: &mut dyn FnMut(&str)) {
                $(
                    let name = $crate::decode::record!(@name $field $($json)?);
                    let path = if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") };
                    <$ty as $crate::decode::overlay::Overlay>::fields(&path, tell);
                )*
            }
        }
    };
    // Each group in turn: where one of its fields is written, those of all others are not taken.
    (@one_of $own:ident $wider:ident [$($before:tt)*]) => {};
    (@one_of $own:ident $wider:ident [$([$($before:ident),+])*] [$($field:ident),+] $([$($after:ident),+])*) => {
        if $($crate::decode::overlay::Absent::is_there(&$own.$field))||+ {
            $($($wider.$before = None;)+)*
            $($($wider.$after = None;)+)*
        }
        $crate::decode::overlay::layered! {
            @one_of $own $wider [$([$($before),+])* [$($field),+]] $([$($after),+])*
        }
    };
}
pub(crate) use layered;
