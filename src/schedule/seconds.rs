//! A sixth field before the five, seconds: for the tests that need many slots in a short time. It
//! exists in a program that is built for the demonstration only, and there only where the
//! environment asks for it; what is installed knows minutes.

/// Whether a schedule may begin with a field of seconds.
#[cfg(feature = "demo")]
pub(super) fn are_asked_for() -> bool {
    std::env::var_os("PGREEVE_DEMO_SECONDS").is_some()
}

/// Whether a schedule may begin with a field of seconds.
#[cfg(not(feature = "demo"))]
pub(super) const fn are_asked_for() -> bool {
    false
}
