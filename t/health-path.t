# health_path: what is asked for of one server instead of uri.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;
require "$FindBin::Bin/health.pl";

our ($node, $INTERVAL);
my @probed = map { RegistryTest->probed } 1 .. 3;
$node = checked({
    main => { check => ['uri=/zone'], block => 'heartbeat_ttl 0; state_file paths.json;' },
    tcp  => ['type=tcp'],
});
sub path { my ($probed) = @_; my ($last) = reverse grep { $_->{line} } $probed->log; return $last ? (split / /, $last->{line})[1] : '' }
sub asks { my ($probed, $path, $name) = @_; local $Test::Builder::Level = $Test::Builder::Level + 1; return ok(wait_until(sub { path($probed) eq $path }), $name) || diag(path($probed)) }

is(call('main', add => $probed[0], health_path => '/its/own?a=b')->{status}, 200, 'a server with a path of its own');
call('main', add => $probed[1]);
asks($probed[0], '/its/own?a=b', 'that is asked for');
asks($probed[1], '/zone', 'of others what the zone says');

call('main', add => $probed[0], weight => 2);
my $checks = health('main', $probed[0])->{checks};
after_checks('main', $probed[0], $checks + 2);
is(path($probed[0]), '/its/own?a=b', 'an add that says nothing of it leaves it');
call('main', add => $probed[0], health_path => '/other');
asks($probed[0], '/other', 'one that does changes it');
is(server('main', $probed[0])->{health}{fails}, 0, 'and nothing else');

ok($node->quit, 'nginx ends');
$node->start;
asks($probed[0], '/other', 'a restart remembers it');

for my $bad ('other', "/a b", "/a\nX: y", '/' . 'x' x 200) {
    my $r = call('main', add => $probed[2], health_path => $bad);
    is($r->{status}, 400, 'refused: ' . substr($bad, 0, 10) =~ s/\n/\\n/r);
    like($r->{json}{message}, qr/"health_path"/, $r->{json}{message});
}
is(server('main', $probed[2]), undef, 'and nothing was added');

call('tcp', add => $probed[2], health_path => '/x');
after_checks('tcp', $probed[2], 2, 'where checks do not ask for anything it is of no account');

$node->log_is_clean;
done_testing;
