# A state file that cannot be used: one clear line, a service that is intact, and the file
# kept beside the new one. nginx -t touches nothing of it.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

use Math::BigInt;
use POSIX ();
use Socket;

my $SECOND = 1 * time_scale();

sub node {
    my (%opt) = @_;
    my $size = $opt{size} || '256k';
    return RegistryTest->nginx(
        workers => 2, start => 0, %opt,
        http => "registry main $size { heartbeat_ttl 1h; state_file main.json; " . ($opt{settings} || '') . ' }
            upstream backend { registry main; }',
        server => 'location /upstream/ { registry_api main; }',
    );
}
sub file { return $_[0]->dir . '/main.json' . ($_[1] || '') }
# A fresh node that has written one server to its file; and that file's text.
sub stopped {
    my $node = node(@_)->start;
    api($node, 'add', { ns => 'backend', host => '127.0.0.9', port => 9 });
    $node->quit or die;
    return ($node, slurp(file($node)));
}
sub sealed {
    my ($text) = @_;
    my $hash = Math::BigInt->from_hex('cbf29ce484222325');
    my ($prime, $mask) = (Math::BigInt->from_hex('100000001b3'), Math::BigInt->from_hex('ffffffffffffffff'));
    for my $byte (unpack 'C*', $text) {
        $hash->bxor($byte)->bmul($prime)->band($mask);
    }
    return sprintf qq(%s,"checksum":"%016s"}\n), $text, substr $hash->as_hex, 2;
}
# Inode, mode, size and mtime of the file and of all beside it.
sub picture {
    my ($node) = @_;
    return { map { my @s = lstat; ($_ => "@s[1, 2, 7, 9]") } glob file($node, '*') };
}

my ($model, $good) = stopped();
like($good, qr/"addr":"127\.0\.0\.9:9"/, 'a good file');
my $body = $good =~ s/,"checksum":.*//sr;
is(sealed($body), $good, 'and its checksum can be made here');

my $HEAD = '{"version":1,"registry":"main","instance":"00000000000000aa","next":5';
my %TEXTS = (
    'empty'              => [ '', 'it is empty' ],
    'truncated'          => [ substr($good, 0, length($good) - 5), 'it is truncated' ],
    'half'               => [ substr($good, 0, length($good) / 2), 'it is truncated' ],
    'zeros'              => [ "\0" x 4096, 'it is truncated' ],
    'a changed weight'   => [ $good =~ s/"weight":1/"weight":2/r, 'it is damaged: its checksum is wrong' ],
    'an older version'   => [ sealed($body =~ s/"version":1/"version":0/r), 'it has format version 0, this module reads version 1' ],
    'a newer version'    => [ qq({"version":2,"more":true}\n), 'it has format version 2, this module reads version 1' ],
    'another program'    => [ qq({"servers":"none"}\n), 'it is damaged: it is too short' ],
    'no servers'         => [ sealed("$HEAD,\"count\":0"), 'it is damaged: missing field `servers` at line 1 column \d+' ],
    'a wrong count'      => [ sealed($body =~ s/"count":1/"count":2/r), 'it is damaged: it has 1 servers and says 2' ],
    'a wrong address'    => [ sealed($body =~ s/127\.0\.0\.9:9/127.0.0.9/r), 'it is damaged: there is no such server: 127\.0\.0\.9' ],
    'deep nesting'       => [ sealed("$HEAD,\"x\":" . '[' x 10_000), 'it is damaged: expected value at line 1 column \d+' ],
);

sub has_one_line {
    my ($node, $pattern, $from) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my @lines = $node->grep_log(qr/state file|state_file/, $from);
    @lines = grep { !/\[notice\].* servers read from/ } @lines;
    is(scalar @lines, 1, 'one line is in the log') or diag(join "\n", @lines);
    like($lines[0] || '', $pattern, 'and says why');
    return;
}

for my $case (sort keys %TEXTS) {
    subtest "$case" => sub {
        my ($text, $why) = @{ $TEXTS{$case} };
        my $node = node();
        spew(file($node), $text);
        my $before = picture($node);
        my ($exit) = $node->test_conf;
        is($exit, 0, 'nginx -t is content');
        is_deeply(picture($node), $before, 'and touches nothing');

        my $from = $node->log_size;
        $node->start;
        is(api($node, 'add', { ns => 'backend', host => '127.0.0.9', port => 1 })->{status}, 200, 'nginx serves');
        is(status($node, 'backend')->{total}, 1, 'with a registry that was empty');
        ok(wait_until(sub { slurp(file($node)) =~ /"addr":"127\.0\.0\.9:1"/ }, $SECOND), 'which is saved');
        is(slurp(file($node, '.bad')), $text, 'the bad file is kept');
        has_one_line($node, qr/\[error\].* registry "main": can't use state file "\Q@{[file($node)]}\E": $why; it is kept as "\Q@{[file($node, '.bad')]}\E"/, $from);
        $node->log_is_clean;
    };
}

# What is no regular file is neither followed nor waited for.
my %KINDS = (
    directory => [ sub { mkdir $_[0]; spew("$_[0]/inside", 'x') }, 'it is a directory, not a regular file', sub { -f "$_[0]/inside" } ],
    fifo      => [ sub { POSIX::mkfifo($_[0], 0600) or die }, 'it is a fifo, not a regular file', sub { -p $_[0] } ],
    socket    => [ sub { socket my $s, PF_UNIX, SOCK_STREAM, 0; bind $s, pack_sockaddr_un($_[0]) or die "bind: $!" },
        'it is a socket, not a regular file', sub { -S $_[0] } ],
    'symbolic link' => [ sub { spew("$_[0].target", $good); symlink "$_[0].target", $_[0] or die },
        'it is a symbolic link, not a regular file', sub { -l $_[0] && slurp("$_[0]") eq $good } ],
    'dangling link' => [ sub { symlink '/nonexistent', $_[0] or die }, 'it is a symbolic link, not a regular file', sub { -l $_[0] } ],
    'huge file' => [ sub { spew($_[0], ''); truncate $_[0], 300 * 1024 * 1024 or die }, 'it is longer than 256 MiB', sub { -s $_[0] == 300 * 1024 * 1024 } ],
);
for my $kind (sort keys %KINDS) {
    subtest "a $kind" => sub {
        my ($make, $why, $is_kept) = @{ $KINDS{$kind} };
        my $node = node();
        $make->(file($node));
        $node->start;
        api($node, 'add', { ns => 'backend', host => '127.0.0.9', port => 1 });
        ok(wait_until(sub { -f file($node) && !-l file($node) && slurp(file($node)) =~ /127\.0\.0\.9:1"/ }, $SECOND), 'nginx serves, and saves');
        ok($is_kept->(file($node, '.bad')), 'what was there is kept');
        has_one_line($node, qr/\[error\].*: $why; it is kept as/);
        if ($kind eq 'huge file') { unlink file($node, '.bad') }
        $node->log_is_clean;
    };
}

subtest 'kept files are not overwritten by the next' => sub {
    my $node = node();
    for my $n (1 .. 3) {
        spew(file($node), "bad $n");
        $node->start;
        $node->stop;
    }
    is(slurp(file($node, $_->[0])), "bad $_->[1]", "$_->[0] is there") for [ '.bad', 1 ], [ '.bad.2', 2 ], [ '.bad.3', 3 ];
    $node->log_is_clean;
};

subtest 'a file that goes bad, or goes, while nginx runs' => sub {
    my $node = node()->start;
    api($node, 'add', { ns => 'backend', host => '127.0.0.9', port => 1 });
    ok(wait_until(sub { slurp(file($node)) =~ /127\.0\.0\.9:1"/ }, $SECOND), 'a server is in the file');
    spew(file($node), 'nonsense');
    ok(wait_until(sub { slurp(file($node)) =~ /127\.0\.0\.9:1"/ }, 3 * $SECOND), 'nonsense in its place is replaced');
    is(slurp(file($node, '.bad')), 'nonsense', 'and kept');
    has_one_line($node, qr/\[error\].*: it is truncated; it is kept as/);
    unlink file($node);
    ok(wait_until(sub { slurp(file($node)) =~ /127\.0\.0\.9:1"/ }, 3 * $SECOND), 'removed, it is written again');
    $node->log_is_clean;
};

subtest 'one that cannot be moved aside is not overwritten' => sub {
    plan skip_all => 'needs root, as an immutable directory does' if $> != 0;
    # A mount of its own is what even root can't rename.
    my $node = node();
    spew(file($node), 'bad');
    my $made = system('unshare', '--mount', 'true') == 0 && system('mount', '--bind', file($node), file($node)) == 0;
    SKIP: {
        skip 'no mounts here', 5 unless $made;
        my $ok = eval {
            $node->start;
            is(api($node, 'add', { ns => 'backend', host => '127.0.0.9', port => 1 })->{status}, 200, 'nginx serves');
            sleep 0.8 * time_scale();
            is(slurp(file($node)), 'bad', 'the file is as it was');
            has_one_line($node, qr/\[error\].*: it is truncated; it can't be moved aside \(.*\) and is not overwritten: nothing is saved until it is gone and nginx has been reloaded/);
            1;
        };
        system('umount', file($node));
        die $@ if !$ok;
        unlink file($node);
        $node->reload;
        ok(wait_until(sub { slurp(file($node)) =~ /127\.0\.0\.9:1"/ }, $SECOND), 'gone, and after a reload, the state is saved');
    }
    $node->log_is_clean;
};

subtest 'a full disk' => sub {
    plan skip_all => 'needs root, for a small disk of its own' if $> != 0;
    my $node = node(size => '1m');
    my $disk = $node->dir . '/disk';
    mkdir $disk;
    system('mount', '-t', 'tmpfs', '-o', 'size=64k', 'none', $disk) == 0 or plan skip_all => 'no mounts here';
    my $ok = eval {
        $node->set_conf(http => $node->{http} =~ s/main\.json/disk\/main.json/r)->start;
        api($node, 'add', { ns => 'backend', host => '127.0.0.9', port => 1 });
        ok(wait_until(sub { slurp("$disk/main.json") =~ /127\.0\.0\.9:1"/ }, $SECOND), 'a server is saved');
        spew("$disk/full", 'x' x 48_000);
        api($node, 'add', { ns => 'backend', host => '127.0.0.9', port => $_ }) for 2 .. 200;
        ok($node->wait_log(qr/\[error\].*state file "\Q$disk\E\/main\.json" can't be written: writing "\Q$disk\E\/main\.json" failed: No space left on device/), 'full: the log says so');
        is(status($node, 'backend')->{total}, 200, 'nginx serves');
        like(slurp("$disk/main.json"), qr/"checksum":"\w+"}\n\z/, 'the file is a whole one');
        sleep 1.2 * time_scale();
        ok(!-e "$disk/main.json.tmp", 'nothing is left of the tries');
        unlink "$disk/full";
        ok(wait_until(sub { slurp("$disk/main.json") =~ /"count":200,/ }, 10 * $SECOND), 'with room again it is written');
        ok($node->wait_log(qr/\[notice\].* is written again/), 'and the log says so');
        is(scalar $node->grep_log(qr/\[error\]/), 1, 'one error line in all');
        $node->quit;
        1;
    };
    system('umount', '-l', $disk);
    die $@ if !$ok;
    $node->log_is_clean;
};

subtest 'a zone that is too small takes as many as fit, and the file is kept' => sub {
    my $node = node(size => '512k', settings => 'cleanup_interval 1h;')->start;
    my $n = 0;
    $n++ while api($node, 'add', { ns => 'backend', host => '127.0.0.9', port => 1 + $n })->{status} == 200;
    $node->quit;
    my $whole = slurp(file($node));
    $node->set_conf(http => $node->{http} =~ s/512k/128k/r);
    my $from = $node->log_size;
    $node->start;
    my $room = status($node, 'backend')->{total};
    ok($room > 20 && $room < $n, "$room of $n have room");
    my $lost = $n - $room;
    has_one_line($node, qr/\[error\].* registry "main": the zone has no room for $lost of the $n servers in state file "\Q@{[file($node)]}\E": give it a larger size; the file is kept as "\Q@{[file($node, '.bad')]}\E"/, $from);
    is(slurp(file($node, '.bad')), $whole, 'it is');
    ok(wait_until(sub { slurp(file($node)) =~ /"count":$room,/ }, $SECOND), 'and what fits is saved');
    $node->log_is_clean;
};

subtest 'allow_servers covers what comes from the file' => sub {
    my $node = node(settings => 'on_expire disable;')->start;
    api($node, 'add', { ns => 'backend', host => "127.0.0.$_", port => 9 }) for 1 .. 8;
    $node->quit;
    $node->set_conf(http => $node->{http} =~ s/on_expire disable;/allow_servers 127.0.0.7 127.0.0.8;/r);
    my $from = $node->log_size;
    $node->start;
    is(join(',', sort keys %{ servers($node, 'backend') }), '127.0.0.7:9,127.0.0.8:9', 'the others are left out');
    has_one_line($node, qr/\[notice\].* registry "main": 6 of the servers in state file "\Q@{[file($node)]}\E" are not in allow_servers and left out: 127\.0\.0\.1:9, 127\.0\.0\.2:9, 127\.0\.0\.3:9, 127\.0\.0\.4:9, 127\.0\.0\.5:9 and 1 more/, $from);
    $node->log_is_clean;
};

done_testing;
