//! What is known of a subject, as SQL: read from the scope of the request.

use crate::erasure::reach::Node;
use crate::postgres::quote::literal;

/// Where the values stand that rows of a node are referred to by.
pub(in crate::erasure) fn source(node: &Node, keys: &[String]) -> String {
    format!("{} ({})", node.relation.display(), keys.join(", "))
}

/// Where the values of an identifying column stand.
pub(in crate::erasure) fn identifier_source(node: &Node, column: &str) -> String {
    format!("identifier {}.{column}", node.relation.display())
}

pub(super) fn token_source(node: &Node, column: &str) -> String {
    format!("token {}.{column}", node.relation.display())
}

/// What a request has collected. It is named by its parameter, or in a script by its variable.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scope(pub(super) &'static str);

impl Scope {
    /// The values of a source, as `v.value`.
    pub(super) fn of(self, source: &str) -> String {
        format!(
            "pgreeve.erasure_scope AS v WHERE v.request_id = {} AND v.source = {}",
            self.0,
            literal(source)
        )
    }

    /// An array of what an expression makes of each value of a source.
    pub(super) fn array(self, source: &str, value: &str) -> String {
        format!("ARRAY(SELECT {value} FROM {})", self.of(source))
    }

    /// An array of the values of a source, each at its place in the key.
    pub(super) fn values(self, source: &str, place: usize, of_type: &str) -> String {
        self.array(source, &format!("(v.value)[{place}]::{of_type}"))
    }

    /// The subject's identifiers, as an array of text.
    pub(super) fn identifiers(self) -> String {
        format!(
            "ARRAY(SELECT (v.value)[1] FROM pgreeve.erasure_scope AS v WHERE v.request_id = {} AND \
             pg_catalog.starts_with(v.source, 'identifier '))",
            self.0
        )
    }

    /// A pattern that matches each telling identifier, or nothing.
    pub(super) fn pattern(self) -> String {
        format!("coalesce((SELECT (v.value)[1] FROM {}), '(?!)')", self.of("pattern"))
    }

    /// The two pads of HMAC-SHA256 under the request's own key, 64 bytes each.
    pub(super) fn pads(self) -> String {
        format!(
            "(SELECT r.mask_key FROM pgreeve.erasure_request AS r WHERE r.request_id = {})",
            self.0
        )
    }
}
