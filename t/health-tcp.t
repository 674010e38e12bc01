# type=tcp: a server is well when it takes a connection.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;
require "$FindBin::Bin/health.pl";

our $node;
my $other = RegistryTest->probed;
$node = checked({
    main => [ 'type=tcp', 'fails=2', 'passes=2' ],
    port => [ 'type=tcp', 'port=' . $other->port ],
    line => { check => ['type=tcp'], upstream => 'server unix:%%DIR%%/nobody.sock;' },
});

subtest 'whatever it does with it' => sub {
    for my $how (qw(silent slams early garbage endless)) {
        my $probed = RegistryTest->probed(how => $how eq 'endless' ? [ [ stream => 'x' x 65536 ] ] : $how);
        call('main', add => $probed);
        my $health = after_checks('main', $probed, 3, $how);
        is($health->{fails}, 0, 'passes');
        cmp_ok($health->{latency_ms}, '<', 300 * time_scale(), 'at once');
        my @log = $probed->log;
        is(scalar(grep { defined $_->{line} } @log), 0, 'nothing is asked');
        ok(wait_until(sub { my @open = grep { !$_->{ended} } $probed->log; @open <= 1 }), 'the connection is closed again');
        is($probed->most_at_once, 1, 'one at a time');
        call('main', remove => $probed);
    }
    my $resets = RegistryTest->probed(how => 'resets');
    call('main', add => $resets);
    is(after_checks('main', $resets, 2)->{checks} >= 2, 1, 'one that resets it is checked too');
    call('main', remove => $resets);
};

subtest 'down and up' => sub {
    my $backend = RegistryTest->backend(name => 'a');
    call('main', add => $backend);
    is(after_checks('main', $backend, 2)->{fails}, 0, 'it listens');
    is(answers('main'), 'a', 'it gets requests');
    $backend->stop;
    becomes('main', $backend, 'unhealthy', 'it is gone');
    is(health('main', $backend)->{last_error}, 'connect refused', 'as status says');
    is(answers('main'), 502, 'it gets none');
    $backend->start;
    becomes('main', $backend, 'up', 'it is there again');
    is(answers('main'), 'a', 'and gets requests');
    is(join('; ', said('main', $backend)), 'unhealthy: connect refused, 2; healthy', 'the log has both');
};

subtest 'another port, and a unix socket' => sub {
    call('port', add => '127.0.0.1:1');
    is(after_checks('port', '127.0.0.1:1', 2)->{fails}, 0, 'the other port is what counts');
    cmp_ok($other->count, '>=', 2, 'which was asked');
    my $path = $node->dir . '/nobody.sock';
    becomes('line', "unix:$path", 'unhealthy', 'a socket that is not there');
    my $reason = health('line', "unix:$path")->{last_error};
    like($reason, qr/^(?:connect refused|unreachable)$/, "is told as \"$reason\"");
    my $backend = RegistryTest->backend(path => $path);
    becomes('line', "unix:$path", 'up', 'and when it is');
    $backend->stop;
    unlink $path;
};

$node->log_is_clean;
done_testing;
