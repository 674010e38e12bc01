# A reload: results stay, no server is checked twice, and other checks apply from then on.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;
require "$FindBin::Bin/health.pl";

our ($node, $INTERVAL);
my $COUNT = 12;
my $PERIOD = 0.2 * time_scale();
my $probed = RegistryTest->probed(count => $COUNT);
my @check = ('interval=' . ms(0.2), 'fails=2', 'passes=2');
$node = checked({ main => [@check] });
call('main', add => $probed->address($_)) for 0 .. $COUNT - 1;
$probed->behave('status 503', 0, 1);
becomes('main', $probed->address($_), 'unhealthy', "server $_ is unhealthy") for 0, 1;

sub conf {
    my (%change) = @_;
    my $http = $node->{http};
    while (my ($from, $to) = each %change) { $http =~ s/\Q$from\E/$to/ or die "no $from in $http" }
    $node->set_conf(http => $http);
    return;
}

subtest 'results stay, and nobody is checked twice' => sub {
    my ($from, $start) = ($node->log_size, $probed->count);
    my %before = map { $_ => health('main', $probed->address($_))->{checks} } 0 .. $COUNT - 1;
    my $began = time;
    for my $round (1 .. 3) {
        ok($node->reload, "reload $round");
        is(state('main', $probed->address($_)), 'unhealthy', "server $_ is still unhealthy") for 0, 1;
        is(state('main', $probed->address($_)), 'up', "server $_ is up") for 2, 3;
        sleep 2 * $PERIOD;
    }
    my $periods = (time - $began) / $PERIOD;
    my @log = $probed->log($start);
    my @times = map { [] } 1 .. $COUNT;
    push @{ $times[ $_->{who} ] }, $_->{begun} for @log;
    my @counts = sort { $a <=> $b } map { scalar @$_ } @times;
    ok($counts[0] >= 0.5 * $periods && $counts[-1] <= 1.15 * $periods + 1, "$counts[0] to $counts[-1] checks of each") or diag("$periods intervals");
    my @gaps = sort { $a <=> $b } map { my $t = $_; map { $t->[$_] - $t->[ $_ - 1 ] } 1 .. $#$t } @times;
    cmp_ok($gaps[0], '>', 0.4 * $PERIOD, 'never two in a moment');
    is($probed->most_at_once, 1, 'nor at a time');
    is(scalar(grep { health('main', $probed->address($_))->{checks} <= $before{$_} } 0 .. $COUNT - 1), 0, 'status goes on counting');
    is(scalar($node->grep_log(qr/server \S+ (?:un)?healthy/, $from)), 0, 'the log has nothing new');
};

subtest 'old workers that stay for their requests make no checks' => sub {
    my $slow = RegistryTest->backend;
    my $http = $node->{http} . "upstream slow { server ${\ $slow->address}; }";
    $node->set_conf(http => $http, server => $node->{server} . ' location /slow { proxy_pass http://slow; }');
    ok($node->reload, 'a reload');
    my @clients = map { my $c = $node->client; $c->send("GET /slow?hang=1 HTTP/1.1\r\nHost: x\r\n\r\n"); $c } 1 .. 8;
    ok(wait_until(sub { $slow->stats->{active} == 8 }), 'requests are under way');
    ok($node->reload(wait => 'new'), 'and another reload');
    ok(scalar($node->old_workers), 'old workers are there');
    sleep $PERIOD;
    my $start = $probed->count;
    sleep 5 * $PERIOD;
    my @counts = (0) x $COUNT;
    $counts[ $_->{who} ]++ for $probed->log($start);
    is(scalar(grep { $_ < 3 || $_ > 7 } @counts), 0, 'each server is checked once in an interval') or diag("@counts");
    is($probed->most_at_once, 1, 'never twice at a time');
    $_->close for @clients;
    ok(wait_until(sub { !$node->old_workers }), 'then they go');
};

subtest 'other checks' => sub {
    my $from = $node->log_size;
    conf('health_check ' => 'health_check uri=/other ');
    my $start = $probed->count;
    ok($node->reload, 'another path');
    ok(wait_until(sub { ($probed->log)[-1]{line} =~ m{^GET /other } }), 'is asked for');
    is(state('main', $probed->address(0)), 'unhealthy', 'who was unhealthy is') ;
    is(scalar($node->grep_log(qr/server \S+ healthy/, $from)), 0, 'nobody became healthy by it');

    conf('uri=/other' => 'status=503');
    ok($node->reload, 'another status');
    becomes('main', $probed->address($_), 'up', "server $_ passes") for 0, 1;
    becomes('main', $probed->address(2), 'unhealthy', 'another does not');
};

subtest 'no checks any more' => sub {
    is(state('main', $probed->address(2)), 'unhealthy', 'one is unhealthy');
    (my $http = $node->{http}) =~ s/health_check [^;]*;//;
    my $with = $node->{http};
    $node->set_conf(http => $http);
    ok($node->reload, 'a reload takes the checks away');
    is(state('main', $probed->address(2)), 'up', 'it is up: nobody would ever find it well again');
    is(health('main', $probed->address(2)), undef, 'health is null');
    my $quiet = $probed->count;
    sleep 3 * $PERIOD;
    is($probed->count, $quiet, 'nobody asks');

    $node->set_conf(http => $with);
    ok($node->reload, 'with them again');
    becomes('main', $probed->address($_), 'unhealthy', "server $_ is found out anew") for 2 .. $COUNT - 1;
};

subtest 'a zone of another size' => sub {
    my $from = $node->log_size;
    (my $http = $node->{http}) =~ s/registry main 256k/registry main 512k/;
    $node->set_conf(http => $http);
    my $checks = health('main', $probed->address(2))->{checks};
    ok($node->reload, 'a reload');
    is(state('main', $probed->address(2)), 'unhealthy', 'results move along');
    cmp_ok(health('main', $probed->address(2))->{checks}, '>=', $checks, 'and their counts');
    after_checks('main', $probed->address(2), $checks + 2, 'checks go on');
    is(scalar($node->grep_log(qr/server \S+ (?:un)?healthy/, $from)), 0, 'nobody changed');
};

subtest 'a reload that fails' => sub {
    my $http = $node->{http};
    $node->set_conf(http => $http =~ s/health_check /health_check nonsense=1 /r);
    ok(!$node->reload(timeout => 3 * time_scale()), 'is refused');
    my $checks = health('main', $probed->address(0))->{checks};
    after_checks('main', $probed->address(0), $checks + 2, 'checks go on');
    $node->set_conf(http => $http);
    ok($node->reload, 'and the next one works');
};

$node->log_is_clean(allow => [ [ qr/\[emerg\] .*nonsense=1/, 1 ] ]);
done_testing;
