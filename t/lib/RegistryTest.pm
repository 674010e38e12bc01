package RegistryTest;

# The harness of the plain Perl tests: nodes of nginx, backends, clients and load, all
# real processes on the loopback, on ports and in directories of their own.
#
#     use lib 't/lib';
#     use RegistryTest;
#
#     my $backend = RegistryTest->backend(name => 'a');
#     my $node = RegistryTest->nginx(workers => 2, server => 'location / { ... }');
#     is($node->get('/')->{status}, 200, 'it answers');
#     $node->log_is_clean;
#     done_testing;
#
# Brings in Test::More and the functions listed in @EXPORT.

use strict;
use warnings;

use Carp ();
use Exporter ();
use JSON::PP ();
use RegistryTest::Backend;
use RegistryTest::BackendGrpc;
use RegistryTest::BackendProbed;
use RegistryTest::Client qw(http raw curl form uri_escape);
use RegistryTest::Clock;
use RegistryTest::Dns;
use RegistryTest::Fault;
use RegistryTest::Load;
use RegistryTest::Node;
use RegistryTest::Process qw(free_port temp_dir slurp spew wait_until time_scale alive);
use RegistryTest::Proxy;
use RegistryTest::Redis;
use RegistryTest::Sentinel;
use Test::More ();
use Time::HiRes qw(sleep time);

our @EXPORT = qw(
    http raw curl form uri_escape parallel load_start load_stop
    api api_json status servers connections same
    free_port temp_dir slurp spew wait_until time_scale alive sleep time
);

sub import {
    my ($class, @plan) = @_;
    strict->import;
    warnings->import;
    my $caller = caller;
    no strict 'refs';
    *{"${caller}::$_"} = \&$_ for @EXPORT;
    # Test::More exports to whoever it believes to have called.
    eval "package $caller; Test::More->import(\@plan); 1" or Carp::croak($@);
    return;
}

# See RegistryTest::Node, RegistryTest::Backend and RegistryTest::Client for what they
# take and do.
sub nginx   { my ($class, %opt) = @_; return RegistryTest::Node->new(%opt) }
sub backend { my ($class, %opt) = @_; return RegistryTest::Backend->new(%opt) }
# Many servers that note who probes them; one that speaks gRPC, where the machine has that.
sub probed { my ($class, %opt) = @_; return RegistryTest::BackendProbed->new(%opt) }
sub grpc   { return RegistryTest::BackendGrpc->new }
# With the fault-injection build of the module: see RegistryTest::Fault.
sub fault   { my ($class, %opt) = @_; return RegistryTest::Fault->node(%opt) }
sub client  { my ($class, $address, %opt) = @_; return RegistryTest::Client->new($address, %opt) }

# Redis, alone and many at once, and what may stand between it and its clients: see the modules.
sub redis    { my ($class, %opt) = @_; return RegistryTest::Redis->new(%opt) }
sub cluster  { my ($class, %opt) = @_; return RegistryTest::Redis->cluster(%opt) }
sub sentinel { my ($class, %opt) = @_; return RegistryTest::Sentinel->new(%opt) }
sub proxy    { my ($class, $target, %opt) = @_; return RegistryTest::Proxy->new($target, %opt) }
# Names and addresses: see the module.
sub dns      { my ($class, %opt) = @_; return RegistryTest::Dns->new(%opt) }
# A wall clock that is so many seconds off.
sub clock    { my ($class, $seconds) = @_; return RegistryTest::Clock->new($seconds) }

# Load: so many requests over so many connections, and the counts (see
# RegistryTest::Load); or in the background, from load_start to load_stop.
sub parallel {
    my ($conns, $requests, $url, %opt) = @_;
    return RegistryTest::Load->new(%opt, conns => $conns, requests => $requests, url => $url)->start->wait;
}

sub load_start { my (%opt) = @_; return RegistryTest::Load->new(%opt)->start->wait_started }
sub load_stop  { return $_[0]->stop }

# The registry's API: its location is /upstream/ unless the node says otherwise
# (RegistryTest->nginx(api => '/registry/', ...)).
sub _api_path { my ($node, $endpoint) = @_; return (ref $node && $node->{api} || '/upstream/') . $endpoint }

# A POST with a form body; the response as from http().
sub api {
    my ($node, $endpoint, $fields, %opt) = @_;
    return $node->post(_api_path($node, $endpoint), body => form($fields || {}), %opt);
}

# The same with a JSON body, of a structure or as it is.
sub api_json {
    my ($node, $endpoint, $data, %opt) = @_;
    my $body = ref $data ? JSON::PP->new->utf8->canonical->encode($data) : $data;
    return $node->post(_api_path($node, $endpoint), body => $body,
        headers => { 'Content-Type' => 'application/json', %{ $opt{headers} || {} } },
        map { $_ => $opt{$_} } grep { $_ ne 'headers' } keys %opt);
}

# The whole reply of status, decoded; dies when it is not one.
sub status {
    my ($node, $namespace, %opt) = @_;
    my $query = defined $namespace ? '?ns=' . uri_escape($namespace) : '';
    my $response = $node->get(_api_path($node, "status$query"), %opt);
    Carp::croak("no status: $response->{status} " . ($response->{error} || $response->{body}))
        unless $response->{status} == 200 && $response->{json};
    return $response->{json};
}

# The servers of a namespace by address; and what is in flight on all of them.
sub servers {
    my ($node, $namespace, %opt) = @_;
    return { map { $_->{addr} => $_ } @{ status($node, $namespace, %opt)->{data} } };
}

sub connections {
    my ($node, $namespace, %opt) = @_;
    my $sum = 0;
    $sum += $_->{connections} for @{ status($node, $namespace, %opt)->{data} };
    return $sum;
}

# Several nodes

# What all nodes agree on, for each server of a namespace, as text: "addr weight max_conns enabled state".
sub _agreed {
    my ($node, $namespace) = @_;
    my $response = $node->get(_api_path($node, 'status?ns=' . uri_escape($namespace)));
    # A namespace without servers may be one that a node does not know.
    return '' if $response->{status} == 404;
    my $data = $response->{json} && $response->{json}{data}
        or Carp::croak("no status: $response->{status} " . ($response->{error} || $response->{body}));
    return join "\n", sort map {
        my $server = $_;
        join ' ', $server->{addr}, map { ref $_ ? ($_ ? 'true' : 'false') : $_ } @$server{qw(weight max_conns enabled state)};
    } @$data;
}

# Waits until all nodes say the same of the servers of a namespace, and of nothing else when expected is given:
# lines as above, or a code that is called with them (a reference to an array of lines). Returns the
# lines, as a reference; nothing, and a diagnostic of what each node says, when the time is up.
sub same {
    my ($nodes, $namespace, %opt) = @_;
    my $expected = $opt{expected};
    $expected = join "\n", sort @$expected if ref $expected eq 'ARRAY';
    my @said;
    my $got = wait_until(sub {
        @said = map { _agreed($_, $namespace) } @$nodes;
        return if grep { $_ ne $said[0] } @said;
        my @lines = split /\n/, $said[0];
        return if defined $expected && !(ref $expected ? $expected->(\@lines) : $said[0] eq $expected);
        return \@lines;
    }, $opt{timeout});
    return $got if $got;
    Test::More::diag("not the same in \"$namespace\":\n", map { "node $_:\n$said[$_ - 1]\n" } 1 .. @said);
    return;
}

1;
