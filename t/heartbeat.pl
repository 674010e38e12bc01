# What the files scripts-heartbeat*.t share: a client that runs, what it says and how it ends.

use strict;
use warnings;

use FindBin;
use RegistryTest;
use RegistryTest::Process qw(spawn exit_status);

our $TTL = 1 * time_scale();
our $backend = RegistryTest->backend(name => 'a');
# Set by the file itself.
our $node;
my $SCRIPT = "$FindBin::Bin/../scripts/heartbeat_client.sh";
our $INTERVAL = 0.25 * time_scale();
my $ADDR = '127.0.0.1:' . $backend->port;

my $clients = 0;
# Starts a client; the environment is what it knows.
sub client {
    my (@arguments) = @_;
    my %env = ref $arguments[-1] ? %{ pop @arguments } : ();
    my $out = $node->dir . '/client-' . ++$clients;
    my %clean = map { $_ => undef } qw(HOST NAMESPACE TOKEN WEIGHT MAX_CONNS TIMEOUT VERBOSE API_PATH);
    my $pid = spawn([ $SCRIPT, @arguments ], stdout => $out, stderr => $out,
        env => { %clean, no_proxy => '127.0.0.1', PORT => $backend->port, BASE_URL => $node->url(''), NAMESPACE => 'backend', INTERVAL => $INTERVAL, %env });
    return { pid => $pid, out => $out };
}
sub said { return slurp($_[0]{out}) }
sub says { my ($client, $pattern) = @_; return wait_until(sub { said($client) =~ $pattern }, 10 * time_scale()) }
# Its exit code, once it has ended.
sub ends {
    my ($client) = @_;
    return 'runs on' unless wait_until(sub { !alive($client->{pid}) }, 10 * time_scale());
    return exit_status($client->{pid}) >> 8;
}
sub stop { my ($client, $signal) = @_; kill $signal || 'TERM', $client->{pid}; return ends($client) }
sub server { my ($ns) = @_; return servers($node, $ns || 'backend')->{$ADDR} }
sub registered { my ($ns) = @_; return wait_until(sub { server($ns) }) }

1;
