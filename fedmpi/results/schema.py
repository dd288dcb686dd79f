"""The results file, schema 1: one HDF5 file a run, for h5py, h5dump, MATLAB and whatever else reads HDF5.

    /               attributes: schema, fedmpi_version, config (YAML text), algorithm, dataset, model, seed,
                    started and last_write (ISO 8601, UTC), status, host, pid, write_interval (seconds); resumed, if
                    it was: a line each time, when and after which round
    /environment    attributes: what the job ran on; a list is one text with a line an entry
    /rounds         one row a round; row r is the state after round r, rounds count from 1
    /clients        one row a participation (round, client)
    /ranks          one row a (round, rank): what it did; client_seconds, for all it did with its clients, and
                    predicted_seconds, what was expected of that by what the rounds before had taught: its speed (the
                    mean is 1), fixed_seconds for a client (for those trained side by side: for a step of all) and
                    step_seconds for a step of a client; NaN before the first round was over
    /evaluation     one row an evaluation: round, per_class_accuracy [classes] and, if the method has it,
                    client_accuracy [clients]; attributes: test_loss, test_accuracy of the initial model
    /clusters       only of methods with several models: one row a round: round, cluster [clients], the number of each
                    client's model, -1 before it has one
    /partition      one row a client: label_counts [classes], samples
    /newcomers      if there were any, one row each: accuracy [epochs + 1] on its own test samples, of the global
                    model and after each epoch of its own training; epochs, after which it has settled (NaN: it
                    has not)
    /stages/NAME    if a method trained another network with the same clients before, one row a round of that: round,
                    train_loss, seconds, bytes_up, ... as in /rounds
    /synthetic      images uint8 [n, C, H, W] and labels [n] of a generator that the server made, compressed
    /model          weights [P], the last global model; further [M, P] arrays of methods with M models;
                    names [T], shapes [T, D] and offsets [T] of the tensors (a shape of fewer than D
                    dimensions ends with -1); attribute: sha256 of the bytes of weights
    /networks       what else a method has at the server, such as a generator: a group each, laid out like /model

Each dataset of /rounds, /clients, /ranks, /evaluation, /clusters and /partition is one column, int64 or float64; one
that has no value in some row is float64, with NaN there. Texts are UTF-8. `weights` are little-endian
float32, every tensor row-major in its PyTorch shape, one after another without padding; offsets count values.

bytes_up and bytes_down of /rounds are what clients send and receive by the method's definition: the models (or
other vectors) of a round, whatever MPI moves; clients whose updates are lost or not used have received theirs.

A client whose training ends in numbers that are not finite, or too large for a mean, has diverged: nothing of it is
used or kept in that round. /clients has diverged, 1 for such a client, and /rounds diverged_clients, how many there
were; train_loss is without them.

Under other conditions than ideal ones /rounds also has virtual_seconds, the round's duration by the virtual clock;
selected, how many clients were asked; dropped, how many of them lost the connection; late, how many updates came
after the deadline, after enough others, or not done where a method does not accept partial work; stragglers, how
many got only a part of their training done. /clients has virtual_seconds, from the start of the round to the
arrival of the client's update. Where clients cannot always be reached, /rounds has unavailable: how many could not.

Where the clients' models teach the server's, /rounds has teacher_seconds, what the ranks that train spent on their
answers (a mean), and server_seconds, what rank 0 spent on learning from them; generator_resets, how often a generator
that had diverged was drawn anew; and skipped_steps, how many steps of the server's model were not finite.

weighted_client_accuracy of /rounds is the mean of the clients' accuracies on their own test samples, weighted by
their training samples; leaky_client_accuracy likewise on nine tenths of their training samples. Of a generator's
images cas is the accuracy, on all real samples, of a model trained on them alone, cas_test that on the test set, and
cas_compat a mean over epochs; they are the same in all rounds. /model then has pretrained [P], from which the rounds
started.

Under an attack /clients has malicious: 1 for clients that are, 0 for the others. Rules that withstand such clients
have rejected in /rounds, how many vectors were not finite; Krum has selected in /clients: 1 for those whose models
became the new one. Methods with a generator at the server have generator_resets in /rounds: how often it was lost.

Of methods with several models, test_accuracy is that of each client's model on the client's own test samples. Further
columns of /rounds are global_matched_accuracy, of each client's model on all test samples; cluster_size_0,
cluster_size_1, ...: how many clients each model has; and, where the partition knows groups of clients,
adjusted_rand_index: how well the clusters agree with these, of the clients that have a model. /clients has cluster,
the number of the client's model after the round.

`status` is running, finished, interrupted (can be resumed) or failed. A killed run cannot change it, so
readers call a running file killed when its process is gone (same host) or its last write is older than ten
times `write_interval` (another host). That is the longest time between two writes so far, but at least one
minute, and six minutes before the first round has ended.
"""

from __future__ import annotations

from typing import Literal

SCHEMA = 1

# A newcomer has settled where the next epochs gain less than this.
SETTLED_EPOCHS, SETTLED_GAIN = 3, 0.001

Status = Literal["running", "finished", "interrupted", "failed"]

# The columns that every run has in /rounds, with their axis labels. Training, communication and evaluation
# are means over the ranks that train; what they leave of `seconds`, the wall time at rank 0, is waiting.
ROUND_LABELS = {
    "round": "Round",
    "seconds": "Time of a round (s)",
    "train_loss": "Training loss",
    "test_loss": "Test loss",
    "test_accuracy": "Test accuracy (%)",
    "train_seconds": "Training in a round (s)",
    "communication_seconds": "Communication in a round (s)",
    "evaluation_seconds": "Evaluation in a round (s)",
    "bytes_up": "Upload of a round's clients (bytes)",
    "bytes_down": "Download of a round's clients (bytes)",
    "diverged_clients": "Clients whose training diverged",
}
