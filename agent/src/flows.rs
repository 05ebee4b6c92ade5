//! Flow events, decoded and joined with names.
