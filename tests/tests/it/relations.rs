//! Relations, hydrated over both databases.
