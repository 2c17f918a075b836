//! Causes that no row injects.

/// A cause, and why there is no row of it.
pub const ELSEWHERE: &[(&str, &str)] = &[
    (
        "misdirected_request",
        "it takes two TLS listeners on one port, and a host of the one on a connection to the other",
    ),
    (
        "cluster_not_found",
        "between two messages of a control plane alone: a rule has come whose service has not",
    ),
    (
        "authorization_unknown",
        "it takes a control plane newer than the proxy, with a policy that this one does not know",
    ),
    (
        "peer_unauthenticated",
        "a connection to the inbound side of a sidecar: it fails in the handshake and has no request",
    ),
    (
        "peer_revoked",
        "what runs is cut off when its caller is revoked; who calls then is in the table of the mesh",
    ),
    (
        "unknown_app_port",
        "a caller in the mesh with an older notion of a service's ports than its instance, or one that the control plane \
         has not told what it serves, or no longer: its sidecar is not ready then; in the mesh it is a refused stream",
    ),
    (
        "draining",
        "only of what is still under way when `--drain-timeout` is over, or at a second SIGTERM; to a caller in the mesh it is a reset",
    ),
    ("internal", "a mistake of ours: nothing outside brings it about"),
];
