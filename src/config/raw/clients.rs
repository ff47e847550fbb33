//! Kinds of clients, as they are written.

use crate::config::decode::{Named, Net, OneOrMany};
use crate::config::written::{words, written};

written! {
    /// Kinds of clients, and what tells them apart.
    Clients is "`clients`", later ["users", "auth"] {
        /// Kinds of clients by name: who fits all fields of a role has it.
        roles: Named<RoleText>,
        /// Where the label of a request comes from (none).
        labels: Labels,
    }
}

words! {
    /// Where the label of a request comes from.
    Labels {
        /// Nowhere.
        None = "none",
        /// What stands behind the last `+` of the user name; the whole name where there is none.
        UsernameSuffix = "username_suffix",
    }
}

written! {
    /// A kind of clients: who fits all of its fields.
    RoleText is "a role", later ["cert", "uid"] {
        /// The client's address lies in one of these.
        cidr: OneOrMany<Net>,
        /// The user name that the client gives; it counts from this machine only, unless it is proved, as by `server.auth`.
        user: OneOrMany<String>,
        /// Globs for the request's label. A label is what the client says, and proves nothing.
        label: OneOrMany<String>,
        /// The client came by one of these listeners.
        listener: OneOrMany<String>,
    }
}
