# What the files state-upgrade*.t share: an nginx with a state file and two backends, and talking to one
# side of an upgrade alone.

use strict;
use warnings;

use RegistryTest;

our ($first, $second) = map { RegistryTest->backend(name => $_) } qw(a b);

sub node {
    my ($settings) = @_;
    # Both sides accept on the same address: which one has answered, its worker's pid tells.
    my $node = RegistryTest->nginx(
        workers => 2, daemon => 1,
        http => "registry main 1m { state_file main.json; $settings } upstream backend { registry main; }",
        server => 'location /upstream/ { registry_api main; add_header X-Worker $pid always; }
            location / { proxy_pass http://backend; }',
    );
    api($node, 'add', { ns => 'backend', host => $_->host, port => $_->port }) for $first, $second;
    wait_until(sub { -f $node->dir . '/main.json' }) or die "no state file\n";
    return $node;
}

# Asks until a worker of that master has answered; both sides accept on one socket.
sub ask {
    my ($node, $master, $endpoint, $fields) = @_;
    my %mine = map { $_ => 1 } $node->workers($master);
    for (1 .. 500) {
        my $client = $node->client;
        my $path = '/upstream/health?ns=backend';
        my $response = $client->request('GET', $path);
        # The connection stays with its worker.
        next unless $mine{ $response->{headers}{'x-worker'} };
        return $endpoint eq 'status' ? $client->request('GET', '/upstream/status?ns=backend')
            : $client->request('POST', "/upstream/$endpoint", body => form({ ns => 'backend', %$fields }));
    }
    die "no worker of $master answers\n";
}

sub ports_of {
    my ($node, $master) = @_;
    my $data = ask($node, $master, 'status')->{json}{data};
    return join ',', sort { $a <=> $b } map { $_->{port} } grep { $_->{host} eq '127.0.0.9' } @$data;
}

1;
