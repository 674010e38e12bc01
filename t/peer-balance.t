# registry_balance and the parameters of server lines, as configurations.
#
# The section "at_once" names requests that one page makes at the same time (by SSI); the body
# is who answered, sorted. "in_turn" names requests made one after the other, and "had" the
# requests that status then tells of each server.
# Servers a, b and c are other server blocks of the same nginx; bad is one that
# closes each connection, gone one that is not there.

use Test::Nginx::Socket;

my %servers = (a => 2, b => 3, c => 4, bad => 5);

add_block_preprocessor(sub {
    my $block = shift;
    my $http = join '', map {
        my $answer = $_ eq 'bad' ? 'return 444;' : "return 200 $_;";
        "server { listen 127.0.0.$servers{$_}:\$TEST_NGINX_SERVER_PORT; $answer }\n"
    } sort keys %servers;
    my $upstreams = $block->http_config;
    $upstreams =~ s/server (\w+)(?=[ ;])/defined $servers{$1} ? "server 127.0.0.$servers{$1}:\$TEST_NGINX_SERVER_PORT" : 'server 127.0.0.1:1'/ge;
    $block->set_value(http_config => "registry main 128k { }\n$http$upstreams");
    my $config = $block->config || '';
    $config .= "location /$_ { proxy_pass http://$_; }\n" for $upstreams =~ /upstream (\w+)/g;
    $config .= 'location = /page { ssi on; ssi_types *; root html; } location /upstream/ { registry_api main; }'
        . 'proxy_http_version 1.1; proxy_set_header Connection ""; error_page 502 /full; location = /full { return 200 -; }';
    $block->set_value(config => $config);

    if (defined(my $at_once = $block->at_once)) {
        my $page = join '', map { "<!--# include virtual=\"/$_\" -->" } split ' ', $at_once;
        $block->set_value(user_files => [ [ 'page', $page ] ]);
        $block->set_value(request => 'GET /page');
        $block->set_value(response_body_filters => sub { join '', sort split //, $_[0] });
    }
    if (defined(my $in_turn = $block->in_turn)) {
        my @requests = map { "GET /$_" } split ' ', $in_turn;
        my @had = map { /(\w+)=(\d+)/; "\"addr\":\"127\\.0\\.0\\.$servers{$1}:[^}]*\"requests\":$2," } split ' ', $block->had;
        $block->set_value(request => [ @requests, 'GET /upstream/status?ns=app' ]);
        $block->set_value(error_code => [ (200) x (@requests + 1) ]);
        $block->set_value(response_body => [ (qr/^[abc]$/) x @requests, qr/@{[ join '.*', @had ]}/ ]);
    }
});

repeat_each(1);
no_root_location();
plan tests => repeat_each() * 174;
run_tests();

__DATA__

=== TEST 1: least_conn is the default
--- http_config
    upstream app { registry main; server a; server b; server c; }
--- at_once: app app app app app app
--- response_body chomp
aabbcc



=== TEST 2: or said
--- http_config
    upstream app { registry main; registry_balance least_conn; server a; server b; server c; }
--- at_once: app app app app app app
--- response_body chomp
aabbcc



=== TEST 3: the order of the lines does not matter
--- http_config
    upstream app { server a; registry_balance least_conn; server b; registry main; server c; }
--- at_once: app app app app app app
--- response_body chomp
aabbcc



=== TEST 4: least_conn by weight
--- http_config
    upstream app { registry main; server a weight=3; server b weight=2; server c; }
--- at_once: app app app app app app
--- response_body chomp
aaabbc



=== TEST 5: least_conn without load goes round
--- http_config
    upstream app { registry main; server a; server b; server c; }
--- in_turn: app app app app app app
--- had: a=2 b=2 c=2



=== TEST 6: by weight
--- http_config
    upstream app { registry main; server a weight=3; server b weight=2; server c; }
--- in_turn: app app app app app app
--- had: a=3 b=2 c=1



=== TEST 7: round_robin
--- http_config
    upstream app { registry main; registry_balance round_robin; server a; server b; server c; }
--- in_turn: app app app app app app
--- had: a=2 b=2 c=2



=== TEST 8: begins with the first line, as stock round robin
--- http_config
    upstream app { registry main; registry_balance round_robin; server a; server b; server c; }
--- pipelined_requests eval
[('GET /app') x 6]
--- response_body eval
[qw(a b c a b c)]



=== TEST 9: by weight
--- http_config
    upstream app { registry main; registry_balance round_robin; server a weight=4; server b weight=2; server c; }
--- in_turn: app app app app app app app
--- had: a=4 b=2 c=1



=== TEST 10: with requests at once
--- http_config
    upstream app { registry main; registry_balance round_robin; server a weight=4; server b weight=2; server c; }
--- at_once: app app app app app app app
--- response_body chomp
aaaabbc



=== TEST 11: two methods on one namespace: least_conn counts the requests of the other
--- http_config
    upstream app { registry main; server a; server b; server c; }
    upstream turns { registry main namespace=app; registry_balance round_robin; }
--- at_once: turns turns app app app app
--- response_body chomp
aabbcc



=== TEST 12: max_conns
--- http_config
    upstream app { registry main; server a max_conns=1; server b max_conns=2; server c; }
--- at_once: app app app app app app app app
--- response_body chomp
abbccccc



=== TEST 13: max_conns of all
--- http_config
    upstream app { registry main; registry_balance round_robin; server a max_conns=1; server b max_conns=1; server c max_conns=2; }
--- at_once: app app app app app app
--- response_body chomp
--abcc
--- error_log
no live upstreams
no eligible server in namespace "app": 3 at max_conns while



=== TEST 14: max_conns without load is no limit
--- http_config
    upstream app { registry main; server a max_conns=1; }
--- in_turn: app app app app
--- had: a=4



=== TEST 15: down
--- http_config
    upstream app { registry main; server a; server b down; server c; }
--- at_once: app app app app
--- response_body chomp
aacc



=== TEST 16: backup is not used
--- http_config
    upstream app { registry main; server a; server b backup; server c; }
--- at_once: app app app app
--- response_body chomp
aacc



=== TEST 17: unless the others are full
--- http_config
    upstream app { registry main; server a max_conns=1; server b backup; server c max_conns=2; }
--- at_once: app app app app app
--- response_body chomp
abbcc



=== TEST 18: or down
--- http_config
    upstream app { registry main; server a down; server b backup; server c backup weight=2; }
--- at_once: app app app
--- response_body chomp
bcc



=== TEST 19: a server that fails is left alone
--- http_config
    upstream app { registry main; registry_balance round_robin; server bad; server b; server c; }
--- in_turn: app app app app app app
--- had: bad=1



=== TEST 20: max_fails=0: it is not, and has its turns
--- http_config
    upstream app { registry main; registry_balance round_robin; server bad max_fails=0; server b; }
--- in_turn: app app app app
--- had: bad=2 b=4



=== TEST 21: a backup for one that is not there
--- http_config
    upstream app { registry main; server gone; server b backup; }
--- request
GET /app
--- response_body chomp
b
--- error_log
connect() failed (111: Connection refused) while connecting to upstream
upstream server temporarily disabled while connecting to upstream



=== TEST 22: with keepalive
--- http_config
    upstream app { registry main; registry_balance round_robin; server a; server b; server c; keepalive 4; }
--- in_turn: app app app app app app
--- had: a=2 b=2 c=2



=== TEST 23: with keepalive, at once
--- http_config
    upstream app { registry main; server a; server b; server c; keepalive 4; }
--- at_once: app app app app app app
--- response_body chomp
aabbcc



=== TEST 24: with a zone line
--- http_config
    upstream app { registry main; zone app 64k; server a; server b; server c max_conns=1; }
--- at_once: app app app app app
--- response_body chomp
aabbc



=== TEST 25: a zone line first
--- http_config
    upstream app { zone app 64k; registry main; registry_balance round_robin; server a; server b; server c; keepalive 2; }
--- in_turn: app app app app app app
--- had: a=2 b=2 c=2



=== TEST 26: the counts are 0 when all have ended
--- http_config
    upstream app { registry main; server a; server bad; server c max_conns=1; }
--- request eval
[('GET /app') x 3, 'GET /upstream/status?ns=app']
--- error_code eval
[200, 200, 200, 200]
--- response_body eval
[qr/^[ac]$/, qr/^[ac]$/, qr/^[ac]$/, qr/^(?!.*"connections":[1-9]).*"connections":0.*"connections":0.*"connections":0/]
