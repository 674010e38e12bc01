# state_file PATH: which paths are taken, the directory that is made for it and given to the
# worker user, one that is there already, and one that cannot be written.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

my $SECOND = 1 * time_scale();
my $WORKER = getpwnam('nobody') ? 'nobody' : 'daemon';
my ($UID, $GID) = (getpwnam $WORKER)[2, 3];

sub node {
    my ($file, %opt) = @_;
    my $main = $> == 0 ? "user $WORKER " . getgrgid($GID) . ';' : '';
    my $node = RegistryTest->nginx(
        workers => 2, start => 0, main => $main, %opt,
        http => "registry main 256k { heartbeat_ttl 1h; state_file $file; } " . ($opt{http} || '')
            . ' upstream backend { registry main; }',
        server => 'location /upstream/ { registry_api main; }',
    );
    # Workers of another user pass through the prefix, and write in it what nginx itself does.
    chmod 0755, $node->dir;
    chmod 0777, $node->dir . '/logs';
    return $node;
}
sub add { my ($node, $port) = @_; return api($node, 'add', { ns => 'backend', host => '127.0.0.9', port => $port }) }
sub saves {
    my ($node, $file, $port) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    is(add($node, $port)->{status}, 200, 'a server registers');
    return ok(wait_until(sub { slurp("$file") =~ /127\.0\.0\.9:$port"/ }, $SECOND), 'and is saved');
}
sub mode { return sprintf '%04o', 07777 & (stat $_[0])[2] }
sub owner { return join ':', (stat $_[0])[4, 5] }

subtest 'a directory that is missing is made, and those above, for the worker user' => sub {
    my $node = node('made/for/it/main.json');
    my $dir = $node->dir . '/made';
    my ($exit, $said) = $node->test_conf;
    is($exit, 0, 'nginx -t is content');
    unlike($said, qr/\[(?:warn|emerg)\]/, 'and silent');
    ok(!-e $dir, 'and makes nothing');
    my $umask = umask 0077;
    $node->start;
    umask $umask;
    is(mode("$dir/for"), '0755', 'a directory above can be passed through');
    is(mode("$dir/for/it"), '0700', 'the directory itself is private');
    is(owner("$dir/for/it"), $> == 0 ? "$UID:$GID" : "$>:" . ($) + 0), "and the worker user's");
    is(owner("$dir/for"), "$>:" . ($) + 0), 'those above are not');
    saves($node, "$dir/for/it/main.json", 1);
    is(mode("$dir/for/it/main.json"), '0600', 'in a private file');
    $node->stop;
    $node->start;
    is(status($node, 'backend')->{total}, 1, 'which a restart reads');
    $node->log_is_clean;
};

subtest 'a directory that is there is left alone' => sub {
    my $node = node('own/main.json');
    my $dir = $node->dir . '/own';
    mkdir $dir;
    chmod 01777, $dir;
    my ($exit, $said) = $node->test_conf;
    unlike($said, qr/\[warn\]/, 'nginx -t is content');
    $node->start;
    saves($node, "$dir/main.json", 1);
    is(mode($dir), '1777', 'its mode is as it was');
    is(owner($dir), "$>:" . ($) + 0), 'its owner too');
    $node->log_is_clean;
};

subtest 'one that the worker user cannot write' => sub {
    plan skip_all => 'root alone has workers of another user' if $> != 0;
    my $node = node('closed/main.json');
    my $dir = $node->dir . '/closed';
    mkdir $dir;
    chmod 0755, $dir;
    my ($exit, $said) = $node->test_conf;
    is($exit, 0, 'nginx -t succeeds');
    like($said, qr/\[warn\] registry "main": state_file can't be written: user "$WORKER", which workers run as, can't make files in "\Q$dir\E": Permission denied \(os error 13\); in \S+nginx\.conf:\d+/,
        'and says that it cannot be written');
    is(() = $said =~ /\[warn\]/g, 1, 'once');
    ok(!glob("$dir/*"), 'and leaves nothing there');
    $node->start;
    is(add($node, 1)->{status}, 200, 'nginx serves');
    my $line = $node->wait_log(qr/\[error\]/, 2 * $SECOND);
    like($line, qr/registry "main": state file "\Q$dir\E\/main\.json" can't be written: locking "\Q$dir\E\/main\.json\.lock" failed: Permission denied \(os error 13\); changes are in memory alone until it can/, 'and says so');
    sleep 1.2 * time_scale();
    $node->kill_worker(($node->workers)[0]);
    sleep 0.6 * time_scale();
    is(scalar $node->grep_log(qr/\[error\]/), 1, 'once, not at each try, by whichever worker');
    chown $UID, $GID, $dir;
    ok(wait_until(sub { slurp("$dir/main.json") =~ /127\.0\.0\.9:1"/ }, 10 * $SECOND), 'once it can be written it is');
    ok($node->wait_log(qr/\[notice\].* registry "main": state file "\Q$dir\E\/main\.json" is written again/), 'and the log says that too');
    $node->log_is_clean(allow => [ [ qr/exited on signal 9/, 1 ] ]);
};

subtest 'a file that the worker user cannot read' => sub {
    plan skip_all => 'root alone has workers of another user' if $> != 0;
    my $node = node('mine/main.json')->start;
    my $dir = $node->dir . '/mine';
    saves($node, "$dir/main.json", 1);
    # Put there by root while nginx runs.
    spew("$dir/new", 'x');
    chmod 0600, "$dir/new";
    rename "$dir/new", "$dir/main.json";
    ok($node->wait_log(qr/\[error\].* can't use state file "\Q$dir\E\/main\.json": it can't be read: Permission denied \(os error 13\); it is kept as "\Q$dir\E\/main\.json\.bad"/), 'the log says so');
    saves($node, "$dir/main.json", 2);
    is(slurp("$dir/main.json.bad"), 'x', 'it is kept');
    is(scalar $node->grep_log(qr/\[error\]/), 1, 'one line in all');
    $node->log_is_clean;
};

subtest 'what a crash left half written goes' => sub {
    my $node = node('left/main.json');
    my $dir = $node->dir . '/left';
    mkdir $dir;
    chown $UID, $GID, $dir if $> == 0;
    spew("$dir/main.json.tmp", 'half');
    $node->start;
    saves($node, "$dir/main.json", 1);
    is(join(',', map { s{.*/}{}r } sort glob "$dir/*"), 'main.json,main.json.lock', 'no temporary file is left');
    $node->log_is_clean;
};

subtest 'an absolute path' => sub {
    my $dir = temp_dir();
    chmod 0777, $dir;
    my $node = node("$dir/main.json")->start;
    saves($node, "$dir/main.json", 1);
    $node->log_is_clean;
};

# [what, the registry blocks, the message]
my $in = qr/in \S+:\d+/;
for my $case (
    [ 'no file', 'registry main 256k { state_file registry/; }', qr/"state_file" names no file: write it as registry\/main\.json, which is taken from the prefix $in/ ],
    [ 'an empty path', 'registry main 256k { state_file ""; }', qr/"state_file" names no file/ ],
    [ 'only dots', 'registry main 256k { state_file a/..; }', qr/"state_file" names no file/ ],
    [ 'no argument', 'registry main 256k { state_file; }', qr/invalid number of arguments in "state_file"/ ],
    [ 'twice', 'registry main 256k { state_file a; state_file b; }', qr/"state_file" directive is duplicate $in/ ],
    [ 'one file for two', 'registry main 256k { state_file x.json; } registry other 256k { state_file x.json; }',
        qr/duplicate state file "\S+\/x\.json": registry "main" has it in \S+:\d+ $in/ ],
    [ 'one file by two names', 'registry main 256k { state_file x.json; } registry other 256k { state_file conf/.././x.json; }',
        qr/duplicate state file "\S+": registry "main" has it/ ],
    [ 'a file as directory', 'registry main 256k { state_file conf/nginx.conf/main.json; }',
        qr/can't use the directory "\S+\/conf\/nginx\.conf" of "state_file": "\S+\/conf\/nginx\.conf": not a directory $in/ ],
) {
    my ($what, $http, $message) = @$case;
    my $node = node('unused');
    $node->set_conf(http => $http, server => '');
    my ($exit, $said) = $node->test_conf;
    ok($exit != 0, "refused: $what");
    like($said, qr/\[emerg\].*$message/, 'with the reason');
}

done_testing;
