# mode=idle: who has just served well is not asked.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;
require "$FindBin::Bin/health.pl";

our $node;
my $PERIOD = 0.4 * time_scale();
my @check = ('uri=/check', 'interval=' . ms(0.4), 'fails=1', 'passes=1');
$node = checked({
    idle   => { check => [ @check, 'mode=idle' ] },
    always => { check => [ @check, 'mode=always' ] },
});

# How many checks a server saw since then; requests of clients ask for another path.
sub checks { my ($probed, $from) = @_; return scalar grep { ($_->{line} || '') =~ m{ /check } } $probed->log($from) }

# Requests for so many periods, one each tenth of it.
sub serve {
    my ($registry, $periods) = @_;
    my %statuses;
    for (1 .. 10 * $periods) {
        $statuses{ $node->get("/to/$registry")->{status} }++;
        sleep $PERIOD / 10;
    }
    return join ' ', sort keys %statuses;
}

subtest 'always' => sub {
    my $probed = RegistryTest->probed;
    call('always', add => $probed);
    after_checks('always', $probed, 1);
    my $from = $probed->count;
    is(serve('always', 5), 200, 'a server that serves');
    cmp_ok(checks($probed, $from), '>=', 4, 'is checked all the same');
    call('always', remove => $probed);
};

subtest 'idle' => sub {
    my $probed = RegistryTest->probed;
    call('idle', add => $probed);
    after_checks('idle', $probed, 2, 'a server without requests is checked');
    # From the first request on.
    $node->get('/to/idle');
    sleep $PERIOD / 10;
    my $from = $probed->count;
    is(serve('idle', 5), 200, 'one that serves');
    is(checks($probed, $from), 0, 'is not checked');
    my $count = health('idle', $probed)->{checks};
    my $start = time;
    after_checks('idle', $probed, $count + 2, 'when requests end it is again');
    cmp_ok(time - $start, '<', 4 * $PERIOD + 1, 'within an interval or two');

    call('idle', remove => $probed);
};

subtest 'a server that fails' => sub {
    my $probed = RegistryTest->probed(how => 'status 503');
    call('idle', add => $probed);
    becomes('idle', $probed, 'unhealthy', 'is checked');
    my $count = health('idle', $probed)->{checks};
    after_checks('idle', $probed, $count + 2, 'and goes on to be');
    $probed->behave('ok');
    becomes('idle', $probed, 'up', 'until it is well');
    call('idle', remove => $probed);
};

subtest 'requests that fail' => sub {
    # It takes connections and closes them: the request fails.
    my $probed = RegistryTest->probed(how => 'leaves');
    call('idle', add => $probed, max_fails => 0);
    becomes('idle', $probed, 'unhealthy', 'are no reason to leave a server alone');
    call('idle', remove => $probed);
};

subtest 'requests that nobody waits for' => sub {
    my $probed = RegistryTest->probed;
    call('idle', add => $probed);
    after_checks('idle', $probed, 1);
    $probed->behave('silent');
    my $until = time + 3 * $PERIOD;
    my $count = health('idle', $probed)->{checks};
    while (time < $until) {
        my $client = $node->client;
        $client->send("GET /to/idle HTTP/1.1\r\nHost: x\r\n\r\n");
        sleep $PERIOD / 10;
        $client->close;
    }
    becomes('idle', $probed, 'unhealthy', 'prove nothing: it is checked, and fails');
    call('idle', remove => $probed);
};

$node->log_is_clean;
done_testing;
