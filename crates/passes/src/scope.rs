//! Scopes: where in the model a node stands.

/// The number of the layer that a scope is in: 3 of `h.3.attn`, none of `embed`.
pub fn layer_of(scope: &str) -> Option<usize> {
    scope.strip_prefix("h.")?.split('.').next()?.parse().ok()
}
