//! The steps of a deployment, and which of them have a machine do something.

/// What the deployer is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// End what runs on the node.
    Prepare,
    /// Put the image on its disk.
    Unpack,
    /// Start what is there.
    Boot,
}

/// A step: what it belongs to, its name, and what is done.
pub(super) type Step = (&'static str, &'static str, Option<Order>);

/// Steps that take time and do nothing.
pub(super) const DUMMY: [Step; 3] = [
    ("SetDeploymentEnvDummy", "dummy", None),
    ("BroadcastEnvDummy", "dummy", None),
    ("BootNewEnvDummy", "dummy", None),
];

const SET: &str = "SetDeploymentEnvUntrusted";
const SEND: &str = "BroadcastEnvTree";
const BOOT: &str = "BootNewEnvClassical";

/// Steps of a real deployment.
pub(super) const REAL: [Step; 17] = [
    (SET, "switch_pxe", None),
    (SET, "reboot", Some(Order::Prepare)),
    (SET, "wait_reboot", None),
    (SET, "send_key_in_deploy_env", None),
    (SET, "create_partition_table", None),
    (SET, "format_deploy_part", None),
    (SET, "mount_deploy_part", None),
    (SEND, "send_environment", Some(Order::Unpack)),
    (SEND, "manage_user_post_install", None),
    (SEND, "check_kernel_files", None),
    (SEND, "send_key", None),
    (SEND, "install_bootloader", None),
    (SEND, "sync", None),
    (BOOT, "switch_pxe", None),
    (BOOT, "umount_deploy_part", None),
    (BOOT, "reboot_from_deploy_env", None),
    (BOOT, "wait_reboot", Some(Order::Boot)),
];
