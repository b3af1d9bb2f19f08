//! Page cursors over both databases.
