//! Tickets: permission to write one member's part of one generation, signed by kget and checked by
//! the repository with a key the two share.
