//! vmdeploy runs long jobs on capacity that can be taken away.
//!
//! Batch clusters have idle nodes. A best-effort job may use them, and is killed when anybody else
//! needs them. vmdeploy runs the job inside virtual machines, snapshots all of them together (memory,
//! disk, devices, network in flight), and when the slots are taken away it gets others and goes on from
//! the last snapshot. The application is not changed, and neither is the scheduler.
//!
//! This page is the architecture. It is a mistake if it is out of date.
//!
//! # The picture
//!
//! ```text
//!    kubectl, Flux, Argo CD
//!           |                              +--------------- site: OAR (REST) ---------------+
//!    kube-apiserver  <---->  operator ---->| slots: submit, look up, status, events, delete |
//!           |                 |    |   \-->| Kadeploy: systems on bare nodes, if a job asks |
//!           ^                 |    |       +--- hold: locks on the slot's nodes ---+--------+
//!           |                 |    |                                               |
//!           |                 |    +--- one agent per member: a pod, or ---+       |
//!           |                 |         an order to the node's launcher    |       |
//!           |                 +-------- go, capture, leave (mutual TLS) ---|-+     |
//!           |                                                              v v     v lease
//!           |                                              node-1: agent = supervisor of one QEMU
//!           +---- kget: snapshots' transfers --- tickets -> node-2: agent  ...  node-n
//!                        |                                     |    ^
//!                        | commit                     parts of | VM | images, generations
//!                        v                                     v    |
//!                   repository: images and generations, outside every reservation
//! ```
//!
//! # The processes
//!
//! All are one binary, `vmdeploy <subcommand>`, and speak mutual TLS with certificates of the operator's
//! own authority ([`tls`]); a certificate names who speaks ([`names::Identity`]), an agent's also its job,
//! member and incarnation. Launchers, which no Secret reaches, have an authority that follows from the launch key.
//!
//! | process | runs as | does | owns |
//! |---|---|---|---|
//! | `operator` | Deployment, elected | reconciles the three kinds, talks to the sites, their deployment servers and the agents; lets the nodes that it had deployed into the cluster, and removes their Node objects | status of `BestEffortJob` and `VmImage`, `Snapshot` but for its transfer, agent pods |
//! | `kget` | Deployment, elected | moves captured generations from the nodes to the repository, one ticket per member's part | `Snapshot.status.transfer` and the condition `Stored` |
//! | `repository` | Deployment and a volume, or a bucket | keeps images and generations; publishes a manifest once the read-back is right | manifests: the truth about generations |
//! | `agent` | one pod per member on the slot's node, or a process of its launcher | supervises QEMU, captures, uploads; kills the guest when the lease is lost | the guest |
//! | `launcher` | by TakTuk in the OAR job, where no kubelet is | starts agents as root, ends with the hold | nothing |
//! | `importer` | pod per `VmImage` | fetches and checks an image or makes one of a packed root file system | nothing |
//! | `kget gather`, `kget node` | by hand, and on each host through a remote shell | copy a file from each of many hosts into one directory, by a token of the run instead of certificates | what lies beside a final name, with its journal |
//!
//! # The layers
//!
//! ```text
//!    api         types of the three kinds, their rules: no client, no clock
//!    store       formats, retention, tickets: no client, no clock
//!    controller  observe (reads only) -> decide (pure, total) -> act (status once, effects, events)
//!    driver      one folder per outside system: trait and closed types, wire and client, double
//!    commands    what people run by hand
//! ```
//!
//! A layer uses those above it and, through the traits, `driver`; nobody but `driver` sees a wire
//! format, but for the other ends of one: `repository::http`, and where a collector takes packs in. `decide` is given
//! facts and the time and returns a plan as data: it may not wait, look, or ask for the time. Waiting is a plan, not an
//! error; not knowing is a fact of its own ([`driver::Fact`]) and never reads as absence. A test over the sources holds
//! these rules, and the length of files.
//!
//! # The modules
//!
//! | module | holds |
//! |---|---|
//! | `agent` | the supervisor on the node: lease, QEMU, captures, uploads; the way in to a job's members |
//! | `api` | the three kinds, conditions and reasons, rules, `crds/` |
//! | `backoff`, `clock`, `lock`, `names`, `yaml` | waits after failures; the time; a file's lock; names and numbers that travel; all YAML |
//! | `commands` | the subcommands for people |
//! | `config` | the operator's configuration |
//! | `controller` | the runner; a folder for each kind, and one for requests of nodes that join: observe, decide, act |
//! | `driver` | sites and OAR, deployment servers (Kadeploy), Kubernetes writes, agents, launchers, repository, QEMU, the guest, the job's network on a node |
//! | `launcher` | starts agents on a node that has no kubelet, inside the OAR job |
//! | `health`, `metrics`, `telemetry`, `shutdown` | pages for the kubelet, figures, logs, signals |
//! | `image` | import; `image::convert` makes a disk of an archive that it does not trust, in one pass, unprivileged |
//! | `leadership` | election by a Lease; its epoch is in every order |
//! | `operator` | wires the operator together |
//! | `repository` | the server around the store |
//! | `sim` | the world in simulated time, for tests |
//! | `store` | manifests, layout, retention, admission, tickets, the migration stream |
//! | `stream` | a byte stream within a WebSocket: to a port of a guest |
//! | `subresources` | `vmdeploy logs`, `get`, `connect`, `exec` and `console`, behind the cluster's API server |
//! | `tls` | the authority, certificates, mutual TLS |
//! | `transfer` | kget: who sends what to the repository; `transfer::plan` decides the order in which nodes are emptied, and the chain by which an image comes to many; `transfer::run` empties them of files of many hosts, without Kubernetes |
//!
//! # The life of a job
//!
//! <!-- states: begin -->
//! ```text
//! Pending        -> ImagePreparing Queued Deploying Starting Restoring Evacuating Suspended Failed
//!                   Terminating
//! ImagePreparing -> Pending Queued Deploying Starting Restoring Evacuating Suspended Failed Terminating
//! Queued         -> Pending ImagePreparing Deploying Starting Restoring Evacuating Suspended Failed
//!                   Terminating
//! Deploying      -> Queued Starting Restoring Running Evacuating Suspended Failed Terminating
//! Starting       -> Queued Deploying Running Evacuating Suspended Failed Terminating
//! Restoring      -> Queued Deploying Running Evacuating Suspended Failed Terminating
//! Running        -> Snapshotting Queued Deploying Evacuating Completing Suspended Succeeded Failed
//!                   Terminating
//! Snapshotting   -> Running Queued Deploying Evacuating Completing Suspended Succeeded Failed Terminating
//! Evacuating     -> Queued Deploying Starting Restoring Completing Suspended Succeeded Failed Terminating
//! Completing     -> Queued Deploying Evacuating Suspended Succeeded Failed Terminating
//! Suspended      -> Pending ImagePreparing Queued Deploying Failed Terminating
//! Succeeded      -> Terminating
//! Failed         -> Terminating
//! ```
//! <!-- states: end -->
//!
//! 1. **Accepted.** The spec is checked against the site and the image; what is wrong becomes a
//!    condition that says what to change. A job that is to begin with a snapshot of another one (`restoreFrom`) first
//!    has the repository make that generation its own generation 0, files and packs: from then on it is like a job
//!    that was killed, with nothing left to ask of the other one. Its own captures are counted from 1.
//! 2. **Queued.** The number of the submission is written to the status first; then it is sent, once.
//!    The name at the site follows from the job's uid and that number, so that a reply that was lost is
//!    looked up instead of sent again.
//! 3. **Slots run.** Where the spec says so (`hypervisor`), the site's deployment server first puts an environment on
//!    their nodes, which join the cluster, each with a token of its own (`controller::join`): one workflow of a slot
//!    after the other, each numbered in the status before it is asked for. The hold (the script in the OAR job, on the
//!    first node or, with those, on the site's frontend) waits on each node for the agent's lease directory and takes
//!    the lock. The incarnation is raised and the repository fenced with it; then one agent pod per member is made on
//!    the slot's nodes, and one more for a master on a node of its own. Where nodes have no kubelet
//!    (`launcher: TakTuk`), the hold starts a launcher on each, which starts the agents at the operator's order and
//!    tells how they end, as a kubelet would. An agent starts nothing before it has seen its lease held.
//! 4. **Loaded, then go.** Every agent makes its node's segment of the job's network, under a number of
//!    the incarnation's own and with the entries for all other members. It boots or restores its guest,
//!    fetching only what the node has not kept of earlier captures, and images from the agent before it in the job's
//!    chain (`distribution: Broadcast`), which sends on what it still receives, from a claim (`Shared`), or by the
//!    hold's TakTuk (`TakTuk`), which puts to all nodes what the first one's agent gives it; the guest stands still,
//!    and only when all are loaded do they run. Where an old member was only silent, its VM may have lived on with the
//!    repository's answers up to the fence: they run once its isolation time has passed after that.
//! 5. **Snapshots.** Every agent stops its guest and says so; only when all have stopped does any go
//!    on. The memory is then written behind the running guest. At kget's word the agent names its pages and the
//!    blocks of disk and output, asks which of them the job has in the repository, and sends the others in
//!    packs and a recipe for each file. The repository reads back what came and publishes the manifest: now the
//!    generation is complete. The agent keeps its blocks on the node then, for the next one there.
//! 6. **Notice or kill.** On a notice one last capture is taken that does not resume. Its bytes go before all
//!    others: what else is being sent stands still meanwhile. On a kill the lock drops and every agent ends its
//!    guest at once, whoever else is down. Both lead back to 2, and to the newest complete generation. Where each
//!    member has a slot of its own (`PerMember`, an array at OAR), a slot that is
//!    wanted is given back as soon as the repository lists its member's bytes, and the others are kept while as many
//!    new ones are asked for, for `acquireTimeout` at most: two jobs that each hold half must not wait for ever.
//!    While the repository's link is full, a member that would only wait sends its bytes to another one, its
//!    collector: kget writes down who gives to whom, then tells the one and then the other. Once the collector lists
//!    all of them, the member's slot is given back too; the collector's own not before all that it holds is in the
//!    repository (`status.transfer.released`). A collector that is lost makes the generation void, so that there is
//!    none where no earlier one is complete.
//! 7. **The end.** Exit code 0 of all commands is success; outputs are kept in the repository.
//!
//! Ends are classified by the site's events, never by a state alone. One lost member is the job's loss:
//! all go back to the same generation. A master on a node of its own is no member: without it the members run
//! on, and the next attempt has another. A slot that has nobody else is given back alone when it is wanted. A slot that
//! fails before anybody is on it is asked for again later each time.
//!
//! # Who owns which truth
//!
//! - **Whether a guest may run**: the lease, a lock on the node's own disk that lives inside the OAR job.
//!   The agent waits on it in its first process. Kubernetes is not asked.
//! - **Which guests are the right ones**: the incarnation, raised in the status before every coherent
//!   start. Agents and repository refuse every older one.
//! - **Who leads**: a Lease; the count of its changes is the epoch that every order carries.
//! - **What can be restored**: the manifests in the repository. `Snapshot` objects are a view of them.
//! - **What a node keeps of captures**: nobody's truth. Its blocks are compared with what the recipe in the repository
//!   says, and fetched where they are not right. They are sealed with a key that follows from the authority's and the
//!   job's uid: with the agent the key is gone from the node, whether or not there was time to remove the files.
//! - **What is in a bucket**: the bucket. The volume in front of it is a cache of what it has, and shows all its names;
//!   what only the volume has was never acknowledged. Whose the bucket is says an object in it: each repository that
//!   starts raises its epoch, and records and manifests are announced in it before they are put, on the condition that
//!   nothing has changed. So one that is only cut off publishes nothing more, at whatever moment it goes on, but for
//!   the cases below.
//! - **What is in the packs**: the packs themselves, named by their index. Where a block is found again is noted
//!   in a database that is made anew from them when it is lost.
//! - **Slots**: the site. Its answers are facts with an age; no answer is `Unknown`, and neither destroys
//!   nor starts anything.
//! - **What is put on nodes**: the deployment server. It knows its workflows only until it is restarted, and then the
//!   record of each node, which says whether our environment was put there to the end.
//! - **Intent**: the job's status, written before what cannot be repeated: a submission, a release, an
//!   incarnation, a generation's number.
//! - **Addresses**: the job's status. The operator offers a subnet that no status has; the network on a
//!   node has no name there and lives by the file descriptors of its agent and QEMU. A job that begins with another
//!   one's generation has the addresses that its manifest says: what keeps the two apart is the number of the VXLAN.
//! - **How often jobs are killed**: the jobs' statuses. The operator adds them up in memory, by site and property, for
//!   periods that are left to it. Those of deleted jobs still count, until its process ends; the next one knows only
//!   the jobs there are.
//! - **The way in's host key**: it follows from the authority's key and the job's uid, and is kept nowhere.
//! - **Which nodes will do**: each generation's manifest says what its members need, an agent what its node offers.
//!   What was missing on a node is in the status of the job that found it out, and counts for all jobs, for a day; KVM
//!   only once it was missing twice, and before that for half an hour and for that job; that a node could not be
//!   deployed only for half an hour and for that job. A request that waits is given back
//!   and sent anew when other nodes are to be left out.
//! - **How much a namespace keeps**: what lies in the repository. A job that is accepted counts with all that it may
//!   bring until it has stored something, a capture with what it may bring. Those that begin in one moment do not see
//!   each other: the repository, which sees the bytes of all, lets a generation in or not before its first one, by the
//!   share that its ticket names. The quota is soft, and what must not be lost is stored.
//! - **Accounts**: a user's Secret in the job's own namespace, or the site's configuration. Logins at web servers: a
//!   Secret in the image's own namespace, of which its importer gets a copy.
//! - **What a name in an image stands for** (an environment of Kadeploy, the tag of an artifact): the image's status,
//!   from when it was looked up until another import is asked for.
//! - **Absence**: an object that cannot be read, or that a watch has not brought, is not gone; before anything
//!   is removed for it, the API server is asked. Nothing is decided while the CRDs it serves would drop fields.
//! - **What an image is**: its SHA-256, compared on each node at each use. Its pieces have names of their own, which
//!   the repository finds out once: by them a node knows that what another agent sends is right before it writes it or
//!   sends it on. Whom it fetches from is its own decision, by what those before it say of themselves
//!   ([`transfer::plan::chain`]); whatever they say, the repository is there in the end.
//! - **Images**: whoever has fetched one, or the operator for all. A digest alone gives no namespace what
//!   another one has fetched. The repository removes one that nothing has named for `imageGrace`: no VmImage and no
//!   job, which the operator asks the API server for, and no complete generation. Since when is noted beside it.
//!
//! # Where this version differs from the plan
//!
//! - **Collectors are told by kget itself**, unless whoever runs it wants none. A member's bytes go to another one
//!   whole: packs and recipes at the addresses that the repository has for them, questions for blocks still to the
//!   repository. The grant is kget's own order to the collector, over mutual TLS, so that agents need no key; the
//!   ticket that goes with it names the collector, and the repository takes the part from nobody else by it. Who gives
//!   to whom follows the policy of [`transfer::plan`] in whole parts; once most have left, nothing is merged any more.
//! - **Agents get everything when they are made.** The Secret mounted into the pod, or the order to the launcher, says
//!   what to load, so an agent loads by itself, with the operator down too; the operator only says go. There is no
//!   order to start that could come twice.
//! - **Recipes name places, not blocks.** A recipe says in which pack and slot each block is, so that a restore
//!   needs no index and what has not changed takes a few bytes. Packs are not rewritten: blocks of packs that
//!   are mostly unused are forgotten, sent again with the next generation, and go with the old ones.
//! - **What a job began with stays for its whole life.** Generation 0 has no Snapshot object; it is what failed
//!   commands are begun again from, and goes with the job. With second names for files it takes little while the other
//!   job has the same blocks; `usage` counts them with both.
//! - **On deployed nodes OAR's kill is no fence.** OAR ends the hold on the frontend and nothing on the nodes: the
//!   connection that is cut ends the lease there. So the end of such a slot proves no death; an agent's word, its
//!   container's end and its silence do.
//! - **Systems on a node are told apart by the uid of the Node object and their kernel's start.** The object of the
//!   system before is removed once a workflow is at work on the node, and that of the deployed one when its slot is
//!   over and all on it are dead: so no agent is placed on a system that is about to go, and no job takes away what
//!   another one has deployed meanwhile.
//! - **A node's token is made on both sides, not sent.** Hold and operator reckon it from the account's key, the slot
//!   and the host, so that no script and no status holds a secret; the hold brings it along when it knocks. By its id,
//!   which the status holds before the token is offered, `controller::join` knows whose request for a certificate it
//!   is. The API server shortens what the kubelet asks for: the token's group says to what. A certificate cannot be
//!   called back: until it ends whoever has the node next can do what a kubelet of that name can, which is why it ends
//!   with its slot.
//! - **A launcher starts agents where no kubelet does**, not the hold itself: agents come and go with incarnations, and
//!   are told secrets, which the hold's script must not hold. A key of the account's, in a file of the site's user and
//!   in a Secret, lets the two know each other. Nodes get to know one that follows from it and the slot: whoever is
//!   root on a node can have agents started in that slot, and in no other. A launcher is asked about its own node
//!   alone, and what it says of an agent's end counts as a kubelet's word does.
//! - **One workflow for each slot**, not one for all: rights come and go with slots, and with `PerMember` slots come
//!   and go one by one.
//! - **The disk is one flattened difference to the image** each time, and its blocks are found again.
//! - **The repository is reached by identity.** The name in the certificate is `repository.vmdeploy.internal`
//!   whatever the address is, so a Service, a host or a tunnel serve alike.
//! - **Who has not to leave restores as well.** With `PerMember` the members whose slots nobody wants stand still until
//!   the generation is complete. Then they end and keep their slots, and the next incarnation restores them from what
//!   their nodes have kept: the VXLAN, the certificates and the fence are the incarnation's, so that old and new
//!   members never share one. Their bytes go to the repository after those of the members that leave, so that no
//!   capture is the only copy while others are waited for.
//! - **What a bucket does not hold yet.** Removals are not announced: a repository that stands still for longer than
//!   the handover between its look at the owner and its request can still remove what its successor relies on, and can
//!   make a note anew in a place whose successor's note was removed meanwhile. A job's results go there under the
//!   job's lock, so that a fence may wait for a large one.
//! - **Fewer contacts.** Only the leading operator and the repository keep an agent from isolating itself:
//!   kget and other agents know nothing of a fence.
//! - **One chain, not one for each switch.** Nodes of a switch (label `vmdeploy.io/switch`) stand together and the next
//!   switch is fed by the last of them, since only the end of a chain has a link to spare. A first agent that is slow
//!   at sending is passed over by the second alone, and one that is slow at receiving by nobody: those behind it cannot
//!   tell it from a slow repository.
//! - **Versions of an image share nothing.** A node that has another version, or a file with a wrong byte, fetches
//!   the whole image; what it lacks of one that came in part is fetched alone.
//! - **No image is uploaded through the API server, and none is looked for in another format.** What is on no web
//!   server, in no registry and on no deployment server goes on a claim.
//! - **TakTuk brings nothing to a late node.** One that asks after the first piece was put gets that image by the
//!   chain. So do nodes that are deployed, because their hold runs on the frontend. Each file of an image is wanted at
//!   a beat of the hold, so that those of a kernel come a few seconds later than by the chain.
//! - **One kind of network.** Kavlan and subnets of the site are refused. A job keeps its network when new
//!   jobs get none.
//! - **Connections are called `portforward`, consoles `attach`** in the subresource API, names under which the
//!   API server lets a request live.
//! - **The subresource API is off by default**, since an APIService without a server behind it hinders the
//!   deletion of namespaces.

#[cfg(test)]
mod architecture;

pub mod agent;
pub mod api;
pub mod backoff;
pub mod clock;
pub mod commands;
pub mod config;
pub mod controller;
pub mod driver;
pub mod health;
pub mod image;
pub mod launcher;
pub mod leadership;
pub mod lock;
pub mod metrics;
pub mod names;
pub mod operator;
pub mod repository;
pub mod shutdown;
#[cfg(test)]
mod sim;
pub mod store;
pub mod stream;
pub mod subresources;
pub mod telemetry;
pub mod tls;
pub mod transfer;
pub mod yaml;
