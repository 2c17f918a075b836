//! gRPC's status codes, as users write them.

use crate::decode::choice;

choice! {
    /// A status of gRPC that is no success, by its name.
    pub enum GrpcStatus {
        /// It was given up.
        Cancelled = "cancelled",
        /// What nobody can name.
        Unknown = "unknown",
        /// The call says what makes no sense.
        InvalidArgument = "invalid-argument",
        /// It took too long.
        DeadlineExceeded = "deadline-exceeded",
        /// There is no such thing.
        NotFound = "not-found",
        /// There is such a thing already.
        AlreadyExists = "already-exists",
        /// The caller may not.
        PermissionDenied = "permission-denied",
        /// There is no more of something.
        ResourceExhausted = "resource-exhausted",
        /// Something else has to be done first.
        FailedPrecondition = "failed-precondition",
        /// Another one came between.
        Aborted = "aborted",
        /// Beyond what there is.
        OutOfRange = "out-of-range",
        /// The server has no such method.
        Unimplemented = "unimplemented",
        /// Something that must not happen has.
        Internal = "internal",
        /// The server cannot, for now.
        Unavailable = "unavailable",
        /// Data is lost.
        DataLoss = "data-loss",
        /// Nobody knows who calls.
        Unauthenticated = "unauthenticated",
    }
}

impl GrpcStatus {
    /// Its number.
    #[must_use]
    pub fn code(self) -> u8 {
        // They are in the order of their numbers, which begin with success.
        self as u8 + 1
    }
}

#[cfg(test)]
mod tests {
    use super::GrpcStatus;

    #[test]
    fn each_name_has_the_number_that_grpc_gives_it() {
        let numbers = GrpcStatus::ALL.iter().map(|status| (status.as_str(), status.code()));
        let some = [
            ("cancelled", 1),
            ("not-found", 5),
            ("aborted", 10),
            ("unavailable", 14),
            ("unauthenticated", 16),
        ];
        assert!(some.iter().all(|one| numbers.clone().any(|other| *one == other)), "{numbers:?}");
        assert_eq!(numbers.count(), 16);
    }
}
