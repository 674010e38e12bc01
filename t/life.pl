# What the files life-*.t share, where each registry NAME has a service of its own name, an API at /NAME/
# and requests at /to/NAME.

use strict;
use warnings;

use RegistryTest;

# Set by the file itself.
our $node;

sub call {
    my ($registry, $endpoint, $backend, %more) = @_;
    return $node->post("/$registry/$endpoint",
        body => form({ host => $backend->host, port => $backend->port, %more }));
}

sub server {
    my ($registry, $backend) = @_;
    local $node->{api} = "/$registry/";
    return servers($node)->{ $backend->address };
}

# Who answers a number of requests: "a b" when both do.
sub answers {
    my ($registry, $count) = @_;
    my %by = map { ($_->{headers}{'x-backend'} || $_->{status}) => 1 }
        map { $node->get("/to/$registry") } 1 .. $count || 6;
    return join ' ', sort keys %by;
}

1;
