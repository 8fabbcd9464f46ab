//! The proof of an erasure: what is left is found, what is certified can be checked, what is erased
//! stays erased.

mod residue;
