//! `vmdeploy importer`: imports one image and ends.
