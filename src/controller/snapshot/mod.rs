//! Snapshots: storing, failing and retiring generations. Decides nothing about when one is taken.
