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

pub(super) fn scope(source: &str) -> String {
    format!(
        "pgreeve.erasure_scope AS v WHERE v.request_id = $1 AND v.source = {}",
        literal(source)
    )
}

/// An array of what an expression makes of each value of a source.
pub(super) fn array(source: &str, value: &str) -> String {
    format!("ARRAY(SELECT {value} FROM {})", scope(source))
}

pub(super) fn values(source: &str, place: usize, of_type: &str) -> String {
    array(source, &format!("(v.value)[{place}]::{of_type}"))
}

/// The subject's identifiers, as an array of text.
pub(super) const IDENTIFIERS: &str = "ARRAY(SELECT (v.value)[1] FROM pgreeve.erasure_scope AS v WHERE v.request_id = $1 AND \
                           pg_catalog.starts_with(v.source, 'identifier '))";

/// A pattern that matches each telling identifier, or nothing.
pub(super) const PATTERN: &str = "coalesce((SELECT (v.value)[1] FROM pgreeve.erasure_scope AS v WHERE v.request_id = $1 AND v.source = \
                       'pattern'), '(?!)')";

/// The two pads of HMAC-SHA256 under the request's own key, 64 bytes each.
pub(super) const PADS: &str = "(SELECT r.mask_key FROM pgreeve.erasure_request AS r WHERE r.request_id = $1)";
